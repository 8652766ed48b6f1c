// Package page is the operator's status page: what the cache of this cluster does now, for people with a browser. It
// only reads, and shows no secret: names of nodes, repositories and pins, sizes and findings.
//
//	gather.go    asks the API server and the agents, only while somebody looks, and no more often than they bear
//	picture.go   what is shown: a pure function of what was gathered
//	history.go   hit ratio and bytes saved over time
//	draw.go      how it is drawn: HTML and SVG that need no script
//	page.go      the HTTP handler and its server
//
// All addresses in the page are relative and it loads nothing from elsewhere, so it works below whatever path a proxy
// gives it, and without a network. A small script fetches it again every few seconds. Without the script the browser
// loads the page anew now and then.
package page
