package page

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	apimeta "k8s.io/apimachinery/pkg/api/meta"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/operator/internal/survey"
)

// What is shown of a large cluster; the numbers of what is left off are shown too.
const (
	maxBlobs    = 20
	maxArrivals = 8
	maxFlows    = 24
	maxPins     = 200
	maxNodes    = 1000
)

// Picture is all that the page shows.
type Picture struct {
	At time.Time `json:"at"`
	// Live: the agents were asked too, and Silent is how many of them did not answer.
	Live     bool         `json:"live"`
	Silent   int          `json:"silent"`
	NotAsked int          `json:"notAsked,omitempty"` // for there are too many
	State    survey.State `json:"state"`
	Problems []Problem    `json:"problems"`
	Grave    int          `json:"grave"`
	Zones    []Zone       `json:"zones"`
	Flows    []Flow       `json:"flows"`
	Blobs    []Blob       `json:"blobs"`
	// MoreBlobs, MoreNodes and MorePins were left off.
	MoreBlobs int     `json:"moreBlobs,omitempty"`
	MoreNodes int     `json:"moreNodes,omitempty"`
	MorePins  int     `json:"morePins,omitempty"`
	Pins      []Pin   `json:"pins"`
	History   []Point `json:"history"`
}

// Problem is a finding, once for all nodes that have it.
type Problem struct {
	Reason  string   `json:"reason"`
	Grave   bool     `json:"grave"`
	On      string   `json:"on"`
	Nodes   []string `json:"nodes,omitempty"`
	Message string   `json:"message"`
	Mend    string   `json:"mend"`
	Link    string   `json:"link"`
}

// Zone is a zone of the swarm.
type Zone struct {
	Name     string `json:"name"`
	Nodes    int    `json:"nodes"`
	Admitted int    `json:"admitted"`
	// Ill are the nodes with something grave.
	Ill   int   `json:"ill"`
	Used  int64 `json:"used"`
	Saved int64 `json:"saved"`
	// Arriving are blobs on their way to its nodes.
	Arriving int   `json:"arriving"`
	Dots     []Dot `json:"-"`
}

// Dot is a node in the picture of its zone: "well", "ill", or "outside" where it is not admitted.
type Dot struct{ Node, State string }

// Flow is what goes from one zone, or from registries, to a zone, for the blobs that are arriving now.
type Flow struct {
	// From is empty for registries.
	From     string `json:"from"`
	To       string `json:"to"`
	Bytes    int64  `json:"bytes"`
	Rate     int64  `json:"bytesPerSecond"`
	Registry bool   `json:"registry,omitempty"`
}

// Blob is content on its way to nodes.
type Blob struct {
	Digest     string    `json:"digest"`
	Repository string    `json:"repository"`
	Size       int64     `json:"size"`
	Nodes      int       `json:"nodes"`
	Present    int64     `json:"present"` // on all nodes
	Arrivals   []Arrival `json:"arrivals"`
}

// More is how many arrivals are not listed.
func (b Blob) More() int { return b.Nodes - len(b.Arrivals) }

// Arrival is a blob on its way to one node.
type Arrival struct {
	Node string `json:"node"`
	Zone string `json:"zone,omitempty"`
	view.Fetch
	For time.Duration `json:"for"`
}

// Pin is an ArtifactPin and how far it is.
type Pin struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Ready     int32  `json:"ready"`
	Desired   int32  `json:"desired"`
	Status    string `json:"status"`
	Message   string `json:"message,omitempty"`
	Held      int64  `json:"held"`
	Wanted    int64  `json:"wanted"`
	Artifacts string `json:"artifacts"`
}

// picture puts together what is shown.
func picture(g *gathered, points []Point) Picture {
	found := survey.Diagnose(g.cluster, g.health, g.at)
	p := Picture{At: g.at, Live: g.asked, NotAsked: g.left, History: points,
		State: survey.StateOf(g.cluster, found, g.at)}
	p.Problems, p.Pins = []Problem{}, []Pin{} // lists also where there is nothing, for those who read JSON
	ill := map[string]bool{}
	for _, group := range survey.Together(found) {
		p.Problems = append(p.Problems, Problem{Reason: group.Reason, Grave: group.Grave, On: group.On(),
			Nodes: group.Nodes, Message: strings.TrimSpace(group.Message), Mend: group.Mend, Link: group.Link})
		if group.Grave {
			p.Grave++
			for _, n := range group.Nodes {
				ill[n] = true
			}
		}
	}
	for _, a := range g.health {
		if a.Err != nil {
			p.Silent++
		}
	}
	w := placesOf(g)
	p.Blobs, p.Flows = w.moving(g)
	p.MoreBlobs = max(0, len(p.Blobs)-maxBlobs)
	p.Zones = zonesOf(p.State.Nodes, ill, w.arriving)
	p.Blobs = p.Blobs[:len(p.Blobs)-p.MoreBlobs]
	p.Flows = p.Flows[:min(len(p.Flows), maxFlows)]
	for i := range g.cluster.Pins {
		p.Pins = append(p.Pins, pinOf(&g.cluster.Pins[i]))
	}
	slices.SortStableFunc(p.Pins, func(a, b Pin) int { // those that are not whole first
		return cmp.Or(cmp.Compare(min(1, b.Desired-b.Ready), min(1, a.Desired-a.Ready)),
			strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	p.MorePins = max(0, len(p.Pins)-maxPins)
	p.Pins = p.Pins[:len(p.Pins)-p.MorePins]
	p.MoreNodes = max(0, len(p.State.Nodes)-maxNodes)
	p.State.Nodes = p.State.Nodes[:len(p.State.Nodes)-p.MoreNodes]
	return p
}

func pinOf(a *v1alpha1.ArtifactPin) Pin {
	p := Pin{Namespace: a.Namespace, Name: a.Name, Ready: a.Status.Ready, Desired: a.Status.Desired,
		Status: "not looked at yet",
		Held:   survey.SizeOf(a.Status.BytesHeld), Wanted: survey.SizeOf(a.Status.BytesWanted),
		Artifacts: a.Status.Summary}
	if c := apimeta.FindStatusCondition(a.Status.Conditions, v1alpha1.ConditionReady); c != nil {
		p.Status, p.Message = c.Reason, c.Message
	}
	return p
}

// places are the zones of nodes, by their names and by their peer IDs, and how many blobs arrive in each.
type places struct {
	byNode, byPeer map[string]string
	arriving       map[string]int
}

func placesOf(g *gathered) places {
	p := places{map[string]string{}, map[string]string{}, map[string]int{}}
	for i := range g.cluster.Peers {
		peer := &g.cluster.Peers[i]
		p.byNode[peer.Name], p.byPeer[peer.Spec.PeerID] = peer.Spec.Zone, peer.Spec.Zone
	}
	return p
}

// moving lists the blobs that arrive, those that most nodes wait for first, and what flows between zones for them, the
// strongest first.
func (p places) moving(g *gathered) ([]Blob, []Flow) {
	blobs, streams := map[string]*Blob{}, flows{}
	for _, a := range g.moving {
		zone := p.byNode[a.Node]
		for _, f := range a.Value {
			b := blobs[f.Digest]
			if b == nil {
				b = &Blob{Digest: f.Digest, Size: f.Size}
				blobs[f.Digest] = b
			}
			during := max(0, g.at.Sub(f.Started))
			b.Repository, b.Size = cmp.Or(b.Repository, f.Repository), max(b.Size, f.Size)
			b.Nodes++
			p.arriving[zone]++
			b.Present += f.Present
			b.Arrivals = append(b.Arrivals, Arrival{Node: a.Node, Zone: zone, Fetch: f, For: during})
			streams.add(Flow{To: zone, Registry: true, Bytes: f.FromUpstream}, during)
			for peer, bytes := range f.Peers {
				if from, known := p.byPeer[peer]; known {
					streams.add(Flow{From: from, To: zone, Bytes: bytes}, during)
				}
			}
		}
	}
	all := []Blob{}
	for _, b := range blobs {
		slices.SortFunc(b.Arrivals, func(x, y Arrival) int {
			return cmp.Or(cmp.Compare(x.Present, y.Present), strings.Compare(x.Node, y.Node))
		})
		b.Arrivals = b.Arrivals[:min(len(b.Arrivals), maxArrivals)] // the slowest are of interest
		all = append(all, *b)
	}
	slices.SortFunc(all, func(a, b Blob) int {
		return cmp.Or(cmp.Compare(b.Nodes, a.Nodes), cmp.Compare(b.Size, a.Size), strings.Compare(a.Digest, b.Digest))
	})
	return all, streams.sorted()
}

// flows sum up what flows from one place to another. Their keys have no numbers.
type flows map[Flow]Flow

func (fs flows) add(f Flow, during time.Duration) {
	if f.Bytes == 0 {
		return
	}
	key := Flow{From: f.From, To: f.To, Registry: f.Registry}
	sum, known := fs[key]
	if !known {
		sum = key
	}
	sum.Bytes += f.Bytes
	sum.Rate += int64(float64(f.Bytes) / max(1, during.Seconds()))
	fs[key] = sum
}

// sorted are the flows, the strongest first.
func (fs flows) sorted() []Flow {
	all := slices.AppendSeq([]Flow{}, maps.Values(fs))
	slices.SortFunc(all, func(a, b Flow) int {
		return cmp.Or(cmp.Compare(b.Rate, a.Rate), strings.Compare(a.From, b.From), strings.Compare(a.To, b.To))
	})
	return all
}

// zonesOf sums up the nodes by zone.
func zonesOf(nodes []survey.NodeState, ill map[string]bool, arriving map[string]int) []Zone {
	by := map[string]*Zone{}
	for _, n := range nodes {
		z := by[n.Zone]
		if z == nil {
			z = &Zone{Name: n.Zone, Arriving: arriving[n.Zone]}
			by[n.Zone] = z
		}
		z.Nodes++
		if n.Admitted {
			z.Admitted++
		}
		if ill[n.Name] {
			z.Ill++
		}
		switch {
		case ill[n.Name]:
			z.Dots = append(z.Dots, Dot{n.Name, "ill"})
		case !n.Admitted:
			z.Dots = append(z.Dots, Dot{n.Name, "outside"})
		default:
			z.Dots = append(z.Dots, Dot{n.Name, "well"})
		}
		z.Used += n.Used
		z.Saved += n.Saved
	}
	all := []Zone{}
	for _, z := range by {
		all = append(all, *z)
	}
	slices.SortFunc(all, func(a, b Zone) int { return strings.Compare(a.Name, b.Name) })
	return all
}
