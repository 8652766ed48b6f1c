package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/node/internal/config"
)

// look are the commands that show what the agent of this machine does. They ask it at its admin address, so they need
// no right but to reach that.
type look struct {
	load    loader
	address string
	output  view.Output
}

// errNotWell ends a command with exit code 1 that has said already what is wrong.
var errNotWell = errors.New("not well")

func lookCommands(load loader) []*cobra.Command {
	l := &look{load: load}
	status := &cobra.Command{
		Use: "status", Short: "Say whether the agent of this machine works, and what is wrong",
		Args:    view.Arguments(0, 0),
		Example: "  shoal-node status\n  shoal-node status -o json",
		Long: "status asks the agent of this machine how it is. " +
			"It exits with 1 where something is wrong, and names it and its mend.",
		RunE: func(cmd *cobra.Command, _ []string) error { return l.status(cmd) },
	}
	ls := &cobra.Command{
		Use: "ls", Short: "List the content that this machine can serve",
		Args:    view.Arguments(0, 0, "where IMAGE says what of an image is here"),
		Example: "  shoal-node ls",
		RunE:    func(cmd *cobra.Command, _ []string) error { return l.list(cmd) },
	}
	where := &cobra.Command{
		Use: "where IMAGE|DIGEST", Short: "Say which parts of an image this machine holds",
		Args:    view.Arguments(1, 1),
		Example: "  shoal-node where docker.io/library/debian:stable-slim",
		RunE:    func(cmd *cobra.Command, args []string) error { return l.where(cmd, args[0]) },
	}
	why := &cobra.Command{
		Use: "why [IMAGE]", Short: "Say why pulls of the last two hours were slow or did not come from the cache",
		Args:    view.Arguments(0, 1),
		Example: "  shoal-node why\n  shoal-node why docker.io/library/debian:stable-slim",
		RunE:    func(cmd *cobra.Command, args []string) error { return l.why(cmd, strings.Join(args, "")) },
	}
	all := []*cobra.Command{status, ls, where, why}
	for _, cmd := range all {
		config.Flags(cmd.Flags())
		hideAllBut(cmd)
		cmd.Flags().StringVar(&l.address, "admin", "",
			"the agent's admin `address`; default: admin.listen of the configuration")
		cmd.Flags().StringVarP((*string)(&l.output), "output", "o", "", "json or yaml")
	}
	return all
}

// patience is how long an agent may take to answer.
const patience = 20 * time.Second

// program is what this program is called where somebody is told to run it.
const program = "shoal-node"

// client asks the agent of this machine.
func (l *look) client(cmd *cobra.Command) (*view.Client, error) {
	if err := l.output.Check(view.JSON, view.YAML); err != nil {
		return nil, err
	}
	address := l.address
	if address == "" {
		c, err := l.load(cmd)
		if err != nil {
			return nil, err
		}
		if address, err = local(c.Admin.Listen); err != nil {
			return nil, err
		}
	}
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	return &view.Client{HTTP: &http.Client{Timeout: patience}, Base: address}, nil
}

// local is where this machine reaches an address that is listened at.
func local(listen string) (string, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", fmt.Errorf("admin.listen %q: %w", listen, err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port), nil
}

// ask reads a view, and says what to do where the agent does not answer.
func ask[T any](ctx context.Context, c *view.Client, path string, query url.Values) (T, error) {
	v, err := view.Get[T](ctx, c, path, query)
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return v, fmt.Errorf("the agent at %s takes connections and gives no answer within %s: it may be frozen, so "+
			"start it anew (systemctl restart shoal-node)", c.Base, view.Duration(patience))
	}
	if dial, ok := errors.AsType[*net.OpError](err); ok {
		return v, fmt.Errorf("no agent answers at %s (%w): does it run (systemctl status shoal-node), and is this "+
			"its admin.listen? --admin names another", c.Base, dial.Err)
	}
	return v, err
}

// machine is what status prints.
type machine struct {
	Ready    bool            `json:"ready"`
	Checks   []string        `json:"checks"`
	Node     view.Node       `json:"node"`
	Peers    int             `json:"peers"`
	Problems []string        `json:"problems,omitempty"`
	Silent   []view.Registry `json:"registriesThatDoNotAnswer,omitempty"`
}

func (l *look) status(cmd *cobra.Command) error {
	c, err := l.client(cmd)
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	var m machine
	if m.Node, err = ask[view.Node](ctx, c, view.NodePath, nil); err != nil {
		return err
	}
	body, err := c.Text(ctx, "/readyz", nil)
	m.Ready = err == nil
	m.Checks = strings.Split(strings.TrimSpace(string(body)), "\n")
	peers, err := ask[[]view.Peer](ctx, c, view.PeersPath, nil)
	if err != nil {
		return err
	}
	m.Peers = len(peers)
	registries, err := ask[[]view.Registry](ctx, c, view.RegistriesPath, nil)
	if err != nil {
		return err
	}
	m.Problems, m.Silent = problems(m, registries)
	err = l.output.Print(cmd.OutOrStdout(), m, m.write)
	if err == nil && len(m.Problems) > 0 {
		return errNotWell
	}
	return err
}

func problems(m machine, registries []view.Registry) (said []string, silent []view.Registry) {
	for _, check := range m.Checks {
		if strings.Contains(check, "not ready") {
			said = append(said, check)
		}
	}
	for _, f := range m.Node.Findings {
		said = append(said, f.Reason+": "+f.Message)
	}
	if m.Node.Store.Problem != "" && !slices.ContainsFunc(said, func(s string) bool {
		return strings.HasPrefix(s, "store:")
	}) {
		said = append(said, "store: "+m.Node.Store.Problem)
	}
	for _, r := range registries {
		if r.Problem != "" {
			silent = append(silent, r)
			said = append(said, r.Host+" does not answer: "+r.Problem)
		}
	}
	return said, silent
}

func (m machine) write(text *view.Text) {
	t := m.Node.Traffic
	mirror := "the runtime asks this agent"
	switch {
	case m.Node.MirrorAwaited:
		mirror = "not known yet: nothing is installed so far"
	case m.Node.MirrorUnknown:
		mirror = "not known (mirror.stateDir is not set): see shoal-node mirror status"
	case len(m.Node.Findings) > 0:
		mirror = "see below"
	}
	for _, line := range [][2]string{
		{"Agent", fmt.Sprintf("%s, for %s", m.Node.Version, view.Duration(m.Node.Now.Sub(m.Node.Started)))},
		{"Peers", fmt.Sprintf("%d connected; zone %s", m.Peers, cmp.Or(m.Node.Zone, "none"))},
		{"Mirror", mirror},
		{"Store", fmt.Sprintf("%s of %s, %s pinned, %d blobs", view.Bytes(m.Node.Store.Bytes),
			capacity(m.Node.Store.Capacity), view.Bytes(m.Node.Store.Pinned), m.Node.Store.Blobs)},
		{"Hits", fmt.Sprintf("%s of %d requests", view.Ratio(t.Hits, t.Hits+t.Misses), t.Hits+t.Misses)},
		{"Saved", fmt.Sprintf("%s not read from registries or the hub; %s came from peers, %s from these",
			view.Bytes(t.Saved), view.Bytes(t.FromPeers), view.Bytes(t.FromUpstream))},
	} {
		text.Say("%-8s %s\n", line[0]+":", line[1])
	}
	for _, p := range m.Problems {
		text.Say("! %s\n", view.Line(p))
	}
}

func capacity(n int64) string {
	if n == 0 {
		return "no limit"
	}
	return view.Bytes(n)
}

func (l *look) list(cmd *cobra.Command) error {
	c, err := l.client(cmd)
	if err != nil {
		return err
	}
	blobs, err := ask[[]view.Blob](cmd.Context(), c, view.BlobsPath, nil)
	if err != nil {
		return err
	}
	slices.SortFunc(blobs, func(a, b view.Blob) int { return b.Used.Compare(a.Used) })
	return l.output.Print(cmd.OutOrStdout(), blobs, func(t *view.Text) { t.Blobs(blobs, time.Now()) })
}

func (l *look) where(cmd *cobra.Command, name string) error {
	name, err := view.Named(program, name)
	if err != nil {
		return err
	}
	c, err := l.client(cmd)
	if err != nil {
		return err
	}
	image, err := ask[view.Image](cmd.Context(), c, view.ImagePath, url.Values{"name": {name}})
	if err != nil {
		return err
	}
	err = l.output.Print(cmd.OutOrStdout(), image, func(t *view.Text) { t.Image(image) })
	if err == nil && !image.Complete {
		return errNotWell
	}
	return err
}

func (l *look) why(cmd *cobra.Command, name string) error {
	of, misspelt := "", ""
	if name != "" {
		image, err := view.Named(program, name)
		if err != nil {
			return err
		}
		of, misspelt = " of "+image, ", or the name is misspelt"
	}
	c, err := l.client(cmd)
	if err != nil {
		return err
	}
	all, err := ask[[]view.Pull](cmd.Context(), c, view.PullsPath, nil)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(p view.Pull) bool { return !p.Matches(name) })
	if len(all) == 0 {
		return fmt.Errorf("this agent remembers no pull%s in the last two hours. Either it was longer ago, or the "+
			"runtime did not ask the agent: see shoal-node mirror status%s. why knows images alone, not "+
			"what came through the hub front", of, misspelt)
	}
	all = all[:min(len(all), 5)]
	return l.output.Print(cmd.OutOrStdout(), all, func(t *view.Text) {
		for _, p := range all {
			t.Pull("", p)
		}
	})
}
