package content

// Varied is how many different bytes a part has at least that nobody guesses: not zeros, nor the header of a file.
const Varied = 48

// Variety is how many different bytes there are: few where they are easy to guess.
func Variety(data []byte) (n int) {
	var seen [256]bool
	for _, b := range data {
		if !seen[b] {
			seen[b] = true
			n++
		}
	}
	return n
}
