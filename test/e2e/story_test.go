package e2e

import (
	"testing"
	"time"
)

// TestShoal is the story of one cluster. A step that fails does not end it, unless no later step could show anything.
func TestShoal(t *testing.T) { //nolint:paralleltest // its steps have the cluster to themselves
	c := connect(t)
	steps := []struct {
		name      string
		run       func(*testing.T, *cluster)
		essential bool
	}{
		{"the API server accepts every variant of the chart", acceptVariants, false},
		{"values that cannot work are refused with advice", refuseValues, false},
		{"helm install brings an agent to every node", install, true},
		{"all agents are admitted and peered", peered, true},
		{"nothing but the swarm port is reachable from another node", onlySwarmPort, false},
		{"a cold rollout on all nodes costs the registry one copy", coldRollout, false},
		{"the same image again with the registry off", registryOff, false},
		{"a private image needs its pull secret though it is cached", privateImage, false},
		{"images and model artifacts are mounted as image volumes", imageVolume, false},
		{"pods read a hub's models from the agents, pinned ones without the hub", hubModels, false},
		{"a pin reaches its replicas and survives a node's loss", pinSurvives, false},
		{"a pinned image is loaded into the runtimes", pinLoads, false},
		{"a starting node takes pods once its pins are there", startupTaint, false},
		{"a policy changes without a restart", policyChange, false},
		{"the metrics that alerts and dashboard ask for are there", metricsExist, false},
		{"kubectl shoal says how the cluster is, and finds a frozen agent", pluginWorks, false},
		{"an agent killed in the middle of a pull", agentKilled, false},
		{"an agent killed in the middle of a model", agentKilledInModel, false},
		{"an agent frozen in the middle of a pull", agentFrozen, false},
		{"every agent down and pods still start", agentsDown, false},
		{"a node reboots and its cache is still there", nodeReboot, false},
		{"pulls go on with operator and API server down", controlPlaneDown, false},
		{"runtimes that read no mirrors are reported, and mended", noMirrorsRead, false},
		{"helm uninstall leaves nodes as they were", uninstall, false},
		{"helm upgrade from the previous version under load", upgrade, false},
		{"helm uninstall after an upgrade leaves nodes as they were", uninstall, false},
	}
	for _, step := range steps {
		ok := t.Run(step.name, func(t *testing.T) {
			start := time.Now()
			defer func() { tell(t, "took %s", time.Since(start).Round(100*time.Millisecond)) }()
			step.run(t, c)
		})
		if !ok && step.essential {
			t.Fatalf("nothing further can be shown: %q failed", step.name)
		}
	}
}
