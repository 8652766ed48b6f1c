// Command hostile puts a peer that breaks the swarm's rules beside an agent.
//
//	go run ./node/internal/swarm/hostile/cmd -attack frames -victim /ip4/127.0.0.1/tcp/5052/p2p/12D3Koo…
package main

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/shoal-cache/shoal/node/internal/swarm"
	"github.com/shoal-cache/shoal/node/internal/swarm/hostile"
)

func main() {
	names := slices.Sorted(maps.Keys(hostile.Attacks))
	names = append(names, slices.Sorted(maps.Keys(hostile.Sessions))...)
	names = append(names, slices.Sorted(maps.Keys(hostile.Holdings))...)
	attack := flag.String("attack", "", "what to do: "+strings.Join(names, ", "))
	victim := flag.String("victim", "", "multiaddr of an agent, with its peer ID")
	identity := flag.String("identity", "", "file of the key of an admitted peer; a new key if empty")
	listen := flag.String("listen", "/ip4/127.0.0.1/tcp/0", "multiaddr to listen at")
	prefix := flag.String("prefix", "/shoal", "protocol prefix of the swarm")
	last := flag.Duration("for", time.Minute, "how long at most")
	flag.Parse()
	if err := run(*attack, *victim, *identity, *listen, *prefix, *last); err != nil {
		fmt.Fprintln(os.Stderr, "hostile:", err)
		os.Exit(1)
	}
}

func run(attack, victim, identity, listen, prefix string, last time.Duration) error {
	info, err := peer.AddrInfoFromString(victim)
	if err != nil {
		return fmt.Errorf("-victim: %w", err)
	}
	var key crypto.PrivKey
	if identity != "" {
		if key, err = swarm.LoadIdentity(identity); err != nil {
			return fmt.Errorf("-identity: %w", err)
		}
	}
	p, err := hostile.New(key, prefix, listen)
	if err != nil {
		return err
	}
	defer func() { _ = p.Close() }()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, last)
	defer cancel()
	fmt.Println("peer", p.ID(), "attacks", info.ID, "with", attack)
	return p.Run(ctx, attack, *info)
}
