package proc

import (
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestCPUTimeOfAProcessWithAnAwkwardName(t *testing.T) {
	t.Parallel()
	cpu, err := parseStat("42 (a) b (c) S 1 42 42 0 -1 4194560 1 0 0 0 150 50 9 9 20 0 1 0 100 1000 10")
	require.NoError(t, err)
	require.Equal(t, 2*time.Second, cpu)

	_, err = parseStat("42 (short) S 1")
	require.Error(t, err)
}

func TestMemoryIsInBytes(t *testing.T) {
	t.Parallel()
	status := "Name:\tx\nVmPeak:\t  9000 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n"
	require.EqualValues(t, 2048<<10, parseMemory(status, "VmHWM:"))
	require.EqualValues(t, 1<<10, parseMemory(status, "VmRSS:"))
	require.Zero(t, parseMemory("Name:\tkthreadd\n", "VmHWM:"))
}

func TestStolenTimeIsBusyAndWaitingForDisksIsNot(t *testing.T) {
	t.Parallel()
	before, err := parseMachine("cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1 2 3\n")
	require.NoError(t, err)
	after, err := parseMachine("cpu  130 0 110 830 20 0 0 10 0 0\n")
	require.NoError(t, err)
	require.InDelta(t, 0.5, after.Busy(before), 1e-9)
	require.Zero(t, after.Busy(after))

	_, err = parseMachine("intr 1 2 3")
	require.Error(t, err)
}

func TestAProcessThatEndsIsNoticedAndQuoted(t *testing.T) {
	t.Parallel()
	p, err := Start(exec.CommandContext(t.Context(), "sh", "-c", "echo no such key: swram >&2; exit 3"),
		filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	<-p.done
	require.ErrorContains(t, p.Exited(), "no such key: swram")
	usage, err := p.Usage()
	require.NoError(t, err)
	require.Positive(t, usage.PeakRSS)
	p.Stop()
}

func TestARunningProcessHasUsedMemoryAndEndsWhenAsked(t *testing.T) {
	t.Parallel()
	p, err := Start(exec.CommandContext(t.Context(), "sleep", "1000"), filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	require.NoError(t, p.Exited())
	usage, err := p.Usage()
	require.NoError(t, err)
	require.Positive(t, usage.PeakRSS)
	p.Stop()
	require.Error(t, p.Exited())
}
