// Package proc starts the processes of a benchmark and reads from /proc what they and the machine have used.
package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// clockTick is the unit of CPU time in /proc: USER_HZ, which is 100 on every Linux architecture Go supports.
const clockTick = 10 * time.Millisecond

// stopTimeout is how long a process has to end by itself after SIGTERM.
const stopTimeout = 5 * time.Second

// Process is a running child whose output goes to a file.
type Process struct {
	cmd  *exec.Cmd
	log  *os.File
	done chan struct{}
	err  error // set before done is closed
}

// Start starts cmd with its output and errors going to the file named log.
func Start(cmd *exec.Cmd, log string) (*Process, error) {
	file, err := os.Create(log)
	if err != nil {
		return nil, fmt.Errorf("log of %s: %w", cmd.Path, err)
	}
	cmd.Stdout, cmd.Stderr = file, file
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", strings.Join(cmd.Args, " "), err), file.Close())
	}
	p := &Process{cmd: cmd, log: file, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// PID is the process's number.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Exited is an error that quotes the end of the log when the process has ended, and nil while it runs.
func (p *Process) Exited() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s ended (%s): %s", strings.Join(p.cmd.Args, " "), fmt.Sprint(p.err), p.tail())
	default:
		return nil
	}
}

func (p *Process) tail() string {
	b, err := os.ReadFile(p.log.Name())
	if err != nil {
		return err.Error()
	}
	return string(bytes.TrimSpace(b[max(0, len(b)-2000):]))
}

// Signal sends a signal, such as SIGSTOP, to the process itself.
func (p *Process) Signal(signal syscall.Signal) error {
	if err := p.cmd.Process.Signal(signal); err != nil {
		return fmt.Errorf("signal %s to %s: %w", signal, p.cmd.Path, err)
	}
	return nil
}

// Kill ends the process at once.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it fails only when the process has ended, which is what is wanted
	<-p.done
	p.log.Close()
}

// Stop asks the process to end, and kills it where it does not.
func (p *Process) Stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
	}
	p.Kill()
}

// Usage is what a process has used so far.
type Usage struct {
	// CPU is user and system time together.
	CPU time.Duration
	// RSS is the resident set, and PeakRSS the largest so far, in bytes.
	RSS, PeakRSS int64
}

// Usage reads /proc. A process that has ended has the usage that the kernel reported at its end.
func (p *Process) Usage() (Usage, error) {
	select {
	case <-p.done:
		state := p.cmd.ProcessState
		peak := int64(0)
		if usage, ok := state.SysUsage().(*syscall.Rusage); ok {
			peak = usage.Maxrss << 10
		}
		return Usage{CPU: state.UserTime() + state.SystemTime(), PeakRSS: peak}, nil
	default:
	}
	dir := "/proc/" + strconv.Itoa(p.cmd.Process.Pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return Usage{}, fmt.Errorf("CPU time of %s: %w", p.cmd.Path, err)
	}
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return Usage{}, fmt.Errorf("memory of %s: %w", p.cmd.Path, err)
	}
	cpu, err := parseStat(string(stat))
	if err != nil {
		return Usage{}, err
	}
	return Usage{CPU: cpu, RSS: parseMemory(string(status), "VmRSS:"), PeakRSS: parseMemory(string(status), "VmHWM:")},
		nil
}

// parseStat is the CPU time in a /proc/PID/stat line: fields 14 and 15 (proc_pid_stat(5)). The second field, the name
// in parentheses, may itself hold spaces and parentheses.
func parseStat(stat string) (time.Duration, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("process status %q: too few fields", stat)
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return 0, fmt.Errorf("process status %q: %w", stat, err)
	}
	return time.Duration(user+system) * clockTick, nil
}

// parseMemory is a field of a /proc/PID/status file in bytes, 0 where there is none (a kernel thread, a zombie).
func parseMemory(status, field string) int64 {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, field); ok {
			kib, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kib << 10
		}
	}
	return 0
}

// Machine is a reading of the machine's CPU counters.
type Machine struct{ busy, total int64 }

// ReadMachine reads /proc/stat.
func ReadMachine() (Machine, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return Machine{}, fmt.Errorf("CPU counters: %w", err)
	}
	return parseMachine(string(b))
}

// parseMachine reads the first line of /proc/stat (proc_stat(5)): user, nice, system, idle, iowait, irq, softirq,
// steal. Time that the hypervisor gave to others counts as busy: this machine could not have used it.
func parseMachine(stat string) (Machine, error) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return Machine{}, fmt.Errorf("CPU counters: unexpected line %q", line)
	}
	var m Machine
	for i, field := range fields[1:9] {
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return Machine{}, fmt.Errorf("CPU counters: %w", err)
		}
		m.total += ticks
		if i != 3 && i != 4 {
			m.busy += ticks
		}
	}
	return m, nil
}

// Busy is the share of all cores' time, 0 to 1, that was used since an earlier reading.
func (m Machine) Busy(since Machine) float64 {
	if m.total <= since.total {
		return 0
	}
	return float64(m.busy-since.busy) / float64(m.total-since.total)
}

// Watch samples the machine's CPU every interval until stop is called, which returns the mean share used and the share
// of the samples in which more than 95 % was.
func Watch(ctx context.Context, interval time.Duration) (stop func() (mean, saturated float64), err error) {
	first, err := ReadMachine()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	type sum struct {
		last            Machine
		samples, pegged int
	}
	result := make(chan sum, 1)
	go func() {
		s := sum{last: first}
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				result <- s
				return
			case <-ticker.C:
			}
			now, err := ReadMachine()
			if err != nil {
				continue // a reading missed makes the next interval longer, no more
			}
			s.samples++
			if now.Busy(s.last) > 0.95 {
				s.pegged++
			}
			s.last = now
		}
	}()
	return func() (mean, saturated float64) {
		cancel()
		s := <-result
		if now, err := ReadMachine(); err == nil {
			s.last = now
		}
		return s.last.Busy(first), float64(s.pegged) / float64(max(1, s.samples))
	}, nil
}
