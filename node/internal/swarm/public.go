package swarm

import (
	"context"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// Witness asks the other nodes which repositories anyone may read. Admitted peers are nodes of the cluster, so the word of
// one is enough.
type Witness struct {
	swarm *Swarm
	known func(content.Repository) bool
}

// NewWitness returns the other nodes as a witness, and answers them by known: whether a registry has let callers without
// credentials read a repository on this node.
func NewWitness(s *Swarm, known func(content.Repository) bool) *Witness {
	w := &Witness{swarm: s, known: known}
	answer(s, "public", w.answer)
	return w
}

// Public tells whether a connected peer knows that anyone may read repo. It takes at most about a second.
func (w *Witness) Public(ctx context.Context, repo content.Repository) (public bool) {
	askPeers(ctx, w.swarm, "public", publicQuery{Registry: repo.Registry, Name: repo.Name}, func(a publicAnswer) bool {
		public = a.Public
		return public
	})
	return public
}

func (w *Witness) answer(q publicQuery) publicAnswer {
	return publicAnswer{Public: w.known(content.Repository{Registry: q.Registry, Name: q.Name})}
}
