package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os/exec"

	"github.com/opencontainers/go-digest"
)

// curl writes the blob's bytes from offset on to sink as curl fetches them: from the first endpoint that does not
// refuse.
func (p *pull) curl(ctx context.Context, d digest.Digest, offset int64, sink io.Writer, buf []byte) (int64, error) {
	var problems []error
	for i, endpoint := range p.spec.Endpoints {
		target := endpoint + "/v2/" + p.spec.Repository + "/blobs/" + d.String()
		last := i == len(p.spec.Endpoints)-1
		if p.spec.Namespace != "" && !last {
			target += "?ns=" + url.QueryEscape(p.spec.Namespace)
		}
		n, err := p.curlFrom(ctx, target, offset, sink, buf)
		if err == nil || n > 0 || ctx.Err() != nil {
			return n, err
		}
		problems = append(problems, err)
		if !last {
			p.fallbacks.Add(1)
		}
	}
	return 0, errors.Join(problems...)
}

func (p *pull) curlFrom(ctx context.Context, target string, offset int64, sink io.Writer, buf []byte) (int64, error) {
	args := []string{"--fail", "--silent", "--show-error", "--no-buffer", "--location", "--range",
		fmt.Sprintf("%d-", offset)}
	if offset == 0 {
		args = args[:len(args)-2]
	}
	if p.spec.CAFile != "" {
		args = append(args, "--cacert", p.spec.CAFile)
	}
	cmd := exec.CommandContext(ctx, "curl", append(args, target)...)
	var problem bytes.Buffer
	cmd.Stderr = &problem
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, fmt.Errorf("curl %s: %w", target, err)
	}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("curl %s: %w", target, err)
	}
	n, copied := io.CopyBuffer(sink, &progress{r: out, pull: p}, buf)
	if err := errors.Join(copied, cmd.Wait()); err != nil {
		return n, fmt.Errorf("curl %s: %w: %s", target, err, bytes.TrimSpace(problem.Bytes()))
	}
	return n, nil
}
