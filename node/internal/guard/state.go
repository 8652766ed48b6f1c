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
	// Grace is how long after that the mirror is removed if the agent's port still accepts connections. The agent is
	// ended again after each Patience, for who is silent now may be another, started since.
	Grace time.Duration

	last   time.Time // the look before
	silent time.Time // since when the agent is silent; zero when it is not
	ended  time.Time // when the guard last asked for its end during this silence
}

// Next says what to do after a look that began at the given time and had the given answer. Where looks are far apart
// the guard itself was held up, and so is no witness of what the agent did meanwhile.
func (s *State) Next(began time.Time, a Answer) Action {
	held := began.Sub(s.last) > 2*s.Patience
	s.last = began
	switch {
	case a == Well:
		s.silent, s.ended = time.Time{}, time.Time{}
		return Install
	case a == Away:
		s.silent, s.ended = time.Time{}, time.Time{}
		return Nothing
	case s.silent.IsZero() || held:
		s.silent, s.ended = began, time.Time{}
		return Nothing
	case began.Sub(s.silent) < s.Patience:
		return Nothing
	case s.ended.IsZero() || began.Sub(s.ended) >= s.Patience:
		s.ended = began
		return End
	case began.Sub(s.silent) >= s.Patience+s.Grace:
		return Remove
	}
	return Nothing
}
