package guard

import "time"

// Answer is what came of one look at the agent.
type Answer int

const (
	// Well means that the agent answered.
	Well Answer = iota
	// Away means that nobody listens on the agent's port.
	Away
	// Sick means that the agent says of itself that it cannot serve.
	Sick
	// Stranger means that another program answers at the agent's port.
	Stranger
	// Somebody means that somebody answers at the agent's port of whom it is not known as yet whether he is the agent.
	Somebody
	// Silent means that somebody accepted the connection and gave no answer that makes sense, or none in time.
	Silent
)

// Action is what the guard has to do.
type Action int

const (
	// Nothing is left to do.
	Nothing Action = iota
	// Install puts the mirror in place where it is missing.
	Install
	// End ends the agent's process.
	End
	// Remove takes the mirror away.
	Remove
)

// State decides what to do about an agent. It is told of each tick, which begins a look, and of each answer. The zero
// value knows nothing yet.
type State struct {
	// Patience is how long an agent may be silent before it is ended. It is ended again after each further Patience,
	// because the one that is silent now may be another, started since.
	Patience time.Duration
	// Every is the time between two ticks. Where a tick comes much later the guard itself was held up, and is no
	// witness of what the agent did meanwhile.
	Every time.Duration

	last     time.Time     // the tick before
	newest   time.Time     // when the newest look began that has brought an answer
	answered bool          // since the tick before
	silence  time.Duration // of the agent, as far as the guard is a witness
	ended    time.Duration // the silence at which its end was last asked for; 0 when it was not
}

// Tick says what to do as time goes on.
func (s *State) Tick(now time.Time) Action {
	passed := min(now.Sub(s.last), 2*s.Every)
	first := s.last.IsZero()
	s.last = now
	if s.answered || first {
		s.answered = false
		return Nothing
	}
	s.silence += passed
	switch {
	case s.silence < s.Patience:
		return Nothing
	case s.ended == 0 || s.silence-s.ended >= s.Patience:
		s.ended = s.silence
		return End
	}
	return Remove // its end did not help
}

// Heard says what to do after the answer to a look that began at a time. One that is sick is passed by at once, because
// to put the mirror back costs little. It is not ended. It answers, and so it goes on with the pulls that are open, by
// the registry. A process that waits for its disk does not end before the disk does, and neither do its connections.
func (s *State) Heard(began time.Time, a Answer) Action {
	if a == Silent || began.Before(s.newest) {
		return Nothing
	}
	s.answered, s.silence, s.ended = true, 0, 0
	if a == Somebody { // an older look is to tell who
		return Nothing
	}
	s.newest = began
	switch a {
	case Well:
		return Install
	case Sick, Stranger:
		return Remove
	default:
		return Nothing
	}
}
