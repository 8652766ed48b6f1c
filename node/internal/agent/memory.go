package agent

import (
	"encoding/json"
	"log/slog"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// The keys of the memory by which an agent rejoins while the API server is away. A value is the JSON of the type named.
const (
	keyMembers = "members" // knownPeers
	keyPolicy  = "policy"  // v1alpha1.EffectivePolicy
	keyPins    = "pins"    // []v1alpha1.PinAssignment: what is kept
	keyListed  = "listed"  // listing: by whom that is listed
	keyZone    = "zone"    // string
	keyTotals  = "totals"  // Counters
)

// knownPeers are the peers of the swarm as they were last seen.
type knownPeers struct {
	Admitted  []knownPeer `json:"admitted"`
	Bootstrap []knownPeer `json:"bootstrap"`
}

// knownPeer is one peer. Addresses are multiaddrs without /p2p.
type knownPeer struct {
	ID        string   `json:"id"`
	Addresses []string `json:"addresses"`
}

// recall reads a remembered value. What can't be read counts as forgotten: the agent then waits for the API server.
func recall[T any](m content.Memory, log *slog.Logger, key string) (value T, ok bool) {
	data, ok := m.Get(key)
	if !ok {
		return value, false
	}
	if err := json.Unmarshal(data, &value); err != nil {
		log.Warn("memory of the API server's last answer is damaged", "key", key, "error", err)
		return value, false
	}
	return value, true
}

// remember writes a value down. A failure costs no more than the memory: the disk may be full, and the agent goes on.
func remember[T any](m content.Memory, log *slog.Logger, key string, value T) {
	data, err := json.Marshal(value)
	if err == nil {
		err = m.Put(key, data)
	}
	if err != nil {
		log.Warn("an answer of the API server was not saved, so a restart without the API server lacks it",
			"key", key, "error", err)
	}
}
