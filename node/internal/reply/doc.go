// Package reply is what the fronts share of HTTP: the plain mechanics of answers whose bytes may still be arriving. It
// knows neither registries nor hubs.
//
//	exchange.go  one request, what is known of its answer, and how that is counted
//	running.go   the requests that run, so that a shutdown can wait for them
//	ranges.go    Range headers and conditions
//	body.go      the header at the latest moment, then the bytes
//	drip.go      keeping an answer alive whose bytes stay away for a while
//
// One rule holds in all of it: an answer either ends with the right bytes or with an aborted connection.
package reply
