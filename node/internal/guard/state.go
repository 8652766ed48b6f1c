package guard

import "time"

// Answer is what came of one look at the agent.
type Answer int

const (
	// Well means that the agent answered.
	Well Answer = iota
	// Away means that nobody listens on the agent's port.
	Away
	// Silent means that somebody accepted the connection and did not answer, or that the agent says of itself that it
	// cannot serve.
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

// State decides what to do about an agent. The zero value knows nothing yet.
type State struct {
	// Patience is how long an agent may be silent before it is ended.
	Patience time.Duration
	// Grace is how long after that the mirror is removed if the agent's port still accepts connections.
	Grace time.Duration

	silent time.Time // since when the agent is silent; zero when it is not
	ended  time.Time // when the guard asked for its end during this silence
}

// Next says what to do after a look that began at the given time and had the given answer.
func (s *State) Next(began time.Time, a Answer) Action {
	switch a {
	case Well:
		s.silent, s.ended = time.Time{}, time.Time{}
		return Install
	case Away:
		s.silent, s.ended = time.Time{}, time.Time{}
		return Nothing
	}
	switch {
	case s.silent.IsZero():
		s.silent = began
		return Nothing
	case began.Sub(s.silent) < s.Patience:
		return Nothing
	case s.ended.IsZero():
		s.ended = began
		return End
	case began.Sub(s.ended) >= s.Grace:
		return Remove
	}
	return Nothing
}
