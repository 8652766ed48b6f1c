//go:build race

package hostile_test

// slow is how many times as much time is allowed where races are looked for.
const slow = 3
