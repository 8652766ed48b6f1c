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

// access finds out with which credentials of a pin one repository can be read. It lives as long as one attempt.
type access struct {
	*attempt
	repo content.Repository
	hub  bool // it is one of a model hub, which takes a token as it is

	once    sync.Once
	problem error // why not all pull secrets could be read

	mu  sync.Mutex
	all []credential // in the order in which they are tried
}

func (a *attempt) access(repo content.Repository) *access { return a.accessTo(repo, false) }

// accessFor is that to the repository that has what req asks for: that of a model hub has it at the path of a file.
func (a *attempt) accessFor(req content.Request) *access {
	return a.accessTo(req.Repository, req.File != "")
}

func (a *attempt) accessTo(repo content.Repository, hub bool) *access {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.accesses == nil {
		a.accesses = make(map[content.Repository]*access)
	}
	if a.accesses[repo] == nil {
		a.accesses[repo] = &access{attempt: a, repo: repo, hub: hub}
	}
	return a.accesses[repo]
}

// candidates are the credentials to try, in order: what served last, then those that the secrets have for the
// repository, at last none.
func (c *access) candidates(ctx context.Context) []credential {
	c.once.Do(func() {
		secrets, problem := c.readSecrets(ctx)
		for _, secret := range secrets {
			if cred, ok := secret.For(c.repo.String()); ok && !slices.Contains(c.all, cred) {
				c.all = append(c.all, cred)
			}
		}
		c.all, c.problem = append(c.all, credential{}), problem
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all
}

// prefer has cred tried first from now on. The others stay: what cred served may have come from a peer, which asks for
// none.
func (c *access) prefer(cred credential) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(c.all, cred); i > 0 {
		c.all = slices.Concat(c.all[i:i+1], c.all[:i], c.all[i+1:])
	}
}

// readSecrets reads the pull secrets, once in an attempt, and not before something is missing on the node. Those that
// can be read are used whatever becomes of the others.
func (a *attempt) readSecrets(ctx context.Context) ([]pullsecret.Credentials, error) {
	a.secretsOnce.Do(func() {
		for _, name := range a.assignment.PullSecrets {
			secret, err := a.opts.Secrets.PullSecret(ctx, a.assignment.Namespace, name)
			if err != nil {
				a.secretsProblem = errors.Join(a.secretsProblem,
					fmt.Errorf("pull secret %s/%s: %w", a.assignment.Namespace, name, err))
				continue
			}
			a.secrets = append(a.secrets, secret)
		}
	})
	return a.secrets, a.secretsProblem
}

// try calls do with the Authorization header of one candidate after the other until one is not refused. Where the
// registry can't be asked for a token, do goes without: a peer may have the content. A failure also tells which pull
// secrets could not be read, because that may be its cause.
func (c *access) try(ctx context.Context, do func(authorization string) error) error {
	if c.repo.None() {
		return do("")
	}
	var refused error
	for _, cred := range c.candidates(ctx) {
		authorization, authErr := c.authorize(ctx, cred)
		if content.Denied(authErr) {
			refused = errors.Join(refused, authErr)
			continue
		}
		err := c.renewing(ctx, cred, authorization, do)
		if err == nil {
			c.prefer(cred)
			return nil
		}
		if !content.Denied(err) {
			return errors.Join(c.problem, err, authErr)
		}
		if authErr != nil {
			err = authErr // the registry refused nobody in particular; that there was no token is why
		}
		refused = errors.Join(refused, err)
	}
	if refused != nil {
		var all pullsecret.Credentials
		secrets, _ := c.readSecrets(ctx)
		for _, s := range secrets {
			all = append(all, s...)
		}
		refused = fmt.Errorf("%w; %s", refused, all.Refused(c.repo.String(), len(c.assignment.PullSecrets)))
	}
	return errors.Join(c.problem, refused)
}

// authorize gives the Authorization header for a credential.
func (c *access) authorize(ctx context.Context, cred credential) (string, error) {
	if !c.hub {
		return c.opts.Upstream.Authorize(ctx, c.repo, cred)
	}
	token, err := cred.HubToken()
	if err != nil {
		return "", fmt.Errorf("pull secret: %w", err)
	}
	if token != "" {
		token = "Bearer " + token
	}
	return token, nil
}

// renewing calls do, and again with a new token whenever the registry takes one no more: those of a large image live
// shorter than its pull. What do has fetched until then is kept. Where no new token is given, why not is the error.
func (c *access) renewing(ctx context.Context, cred credential, authorization string,
	do func(authorization string) error) error {
	for {
		err := do(authorization)
		if !content.Denied(err) || c.hub {
			return err
		}
		var renewErr error
		if authorization, renewErr = c.opts.Upstream.Renew(ctx, c.repo, cred, authorization); renewErr != nil {
			return renewErr
		}
		if authorization == "" {
			return err
		}
	}
}
