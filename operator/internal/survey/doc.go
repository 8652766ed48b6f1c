// Package survey puts together what the API server and the agents say of the cache: how it is, and what is amiss.
// Package plugin prints it (kubectl shoal), and package page shows it (the operator's status page).
//
//	cluster.go   what the API server knows
//	agents.go    what the agents themselves show, at their admin addresses, by port-forwards of the API server
//	diagnose.go  what is amiss, and how to mend it: a pure function of both
//	state.go     how it is, in short: a pure function too
package survey
