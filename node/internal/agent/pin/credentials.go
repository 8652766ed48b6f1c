package pin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/shoal-cache/shoal/api/pullsecret"
	"github.com/shoal-cache/shoal/node/internal/content"
)

// credential is what a registry is shown. The zero value is anonymous.
type credential = pullsecret.Credential

// access finds out with which credentials of a pin one repository can be read. It lives as long as one attempt, and reads
// no secret before something is missing on the node.
type access struct {
	*attempt
	repo content.Repository

	once    sync.Once
	all     []credential
	problem error // why not all pull secrets could be read

	mu       sync.Mutex
	accepted int // index in all of what the registry accepted; -1 while that is not known
}

func (a *attempt) access(repo content.Repository) *access {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.accesses == nil {
		a.accesses = make(map[content.Repository]*access)
	}
	if a.accesses[repo] == nil {
		a.accesses[repo] = &access{attempt: a, repo: repo, accepted: -1}
	}
	return a.accesses[repo]
}

// candidates are the credentials to try, in order: the one that was accepted alone, else those that the secrets have for the
// repository, at last none.
func (c *access) candidates(ctx context.Context) []credential {
	c.once.Do(func() {
		c.all, c.problem = c.find(ctx)
		c.all = append(c.all, credential{})
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.accepted >= 0 {
		return c.all[c.accepted : c.accepted+1]
	}
	return c.all
}

// find reads the pull secrets. Those that can be read are used whatever becomes of the others.
func (c *access) find(ctx context.Context) (found []credential, problem error) {
	if c.repo == (content.Repository{}) {
		return nil, nil
	}
	for _, name := range c.assignment.PullSecrets {
		secret, err := c.opts.Secrets.PullSecret(ctx, c.assignment.Namespace, name)
		if err != nil {
			problem = errors.Join(problem, fmt.Errorf("pull secret %s/%s: %w", c.assignment.Namespace, name, err))
			continue
		}
		if cred, ok := secret.For(c.repo.String()); ok && !slices.Contains(found, cred) {
			found = append(found, cred)
		}
	}
	return found, problem
}

// try calls do with the Authorization header of one candidate after the other until one is not refused. Where the registry
// can't be asked for a token, do goes without: a peer may have the content. A failure also tells which pull secrets could
// not be read, for that may be its cause.
func (c *access) try(ctx context.Context, do func(authorization string) error) error {
	if c.repo == (content.Repository{}) {
		return do("")
	}
	var refused error
	for _, cred := range c.candidates(ctx) {
		authorization, authErr := c.opts.Upstream.Authorize(ctx, c.repo, cred)
		if content.Denied(authErr) {
			refused = errors.Join(refused, authErr)
			continue
		}
		err := do(authorization)
		if err == nil {
			c.accept(cred)
			return nil
		}
		if !content.Denied(err) {
			return errors.Join(c.problem, err, authErr)
		}
		refused = errors.Join(refused, err)
	}
	return errors.Join(c.problem, refused)
}

func (c *access) accept(cred credential) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.accepted = slices.Index(c.all, cred)
}
