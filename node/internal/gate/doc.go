// Package gate decides who may read what: it holds the word of the sources of content, remembered. A source is whoever
// decides who may read from it: a repository of an OCI registry, or of a model hub. The fronts and the pins call Admit;
// what a source said in answer to a front's own question comes in by Confirm and Refused.
//
// The gate remembers two things, and a caller reads content when both hold.
//
//   - Whom a source accepted. It is asked with the caller's own credentials, and its yes holds for the policy's time.
//     Where callers show tokens, which do not outlive an outage, it is also asked what it lets anyone read.
//     A yes must be about the content: it names its digest, or its size, where that is known. Else a sample decides,
//     because a proxy in front of a source may answer every question with a page. Where there is nothing to sample,
//     the caller is given what the source gives him itself, whatever it has proved, and is not asked about anew for a
//     minute. What he was given so shows it too, once the whole has matched.
//   - What a source has. A source that says so claims it. The claim proves nothing, because a digest is no secret, and
//     anyone may name a host that claims every digest. So a claim is enough only for content that nobody in the swarm
//     holds: it then comes from that source or not at all. Content that came from elsewhere is given in the name of a
//     source once the source has proved that it has it too: by all of it that it gave to this node before, by the word
//     of another node to which it proved it, or by a sample at a place of the gate's choosing. Manifests and what is
//     little are sampled whole. What gives no such sample is given its own bytes alone.
//
// What a manifest lists is proof of nothing: whoever pushed it made it up.
//
// What other nodes say counts as far as nothing speaks against it, because one of them may have been taken over. Of
// what anyone may read the newest word counts that any node has of its source, be it a yes or a no: what has become
// private is shut also on nodes that have not asked since. No other node opens what refused this one last, and it takes
// two to open what refused another since. Nothing that was only heard is saved or passed on. That a source has proved
// to have some content counts by the word of one node, for an hour: such a node could give away itself what it opens
// so.
//
// What happens while a source does not decide:
//
//	the source                      | accepted within the policy's time | accepted earlier            | anyone else
//	is throttling (429, 408)        | served                            | its 429, but see below      | its 429
//	does not answer, or answers 5xx | served                            | served, where Offline allows | the failure
//	answers 401, 403 or 404         | served until the time is over     | refused                     | refused
//
// While it throttles, what anyone could read within the last day is served as well, unless a node has been refused
// since. So it is where the policy's own limit keeps the node from asking. Silence and 5xx count for the very source
// and credentials that were asked about, so nobody can make an outage for others, and an acceptance is never widened to
// whom the source has not accepted. Only the time counts in which the source itself is waited for: not that for memory
// of this node, for other nodes, or for what the policy's limit allows.
//
// A source that lets anyone read, by the newest that nodes know, is waited for no longer than Hedge, where its
// content can be had without it.
//
// While content arrives for the first time it is held by nobody, so the gate lets in whoever's source claims it. What
// such a caller is given package fetch decides by Proved: the bytes of its own source alone, until that has proved to
// have the content.
//
// Where the policy exempts a source nobody is asked, so whoever knows a digest reads through it what is cached of any
// other.
package gate
