// Package hubtest is a model hub for tests, benchmarks and demonstrations: as much of Hugging Face's as clients and
// caches meet, and as much trouble as they meet there.
//
// Small files lie in git. The hub answers for them with a relative redirect to /api/resolve-cache, as the real one
// does. Large ones lie in large file storage: the hub redirects to a signed URL of its CDN, which is another server,
// and tells of Xet in all three places where the real one does.
package hubtest
