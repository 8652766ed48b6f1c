package report

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

const columns = "contender\tfirst s\tmedian s\tlast s\tover ideal\tregistry copies\trequests\tbusiest sent\tCPU " +
	"s/GiB\tpeak MiB\tfirst byte s\tfailed\tCPU busy\tnote"

// WriteTable writes the figures as text for a terminal.
func (r *Report) WriteTable(w io.Writer) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, load := range r.Workloads {
		fmt.Fprintf(out, "\n%s: %s\n", load.Name, load.Title)
		fmt.Fprintln(out, columns)
		for _, run := range load.Runs {
			fmt.Fprintln(out, strings.Join(cells(run), "\t"))
		}
	}
	fmt.Fprintf(out, "\nTargets\nworkload\tfigure\tmeasured\ttarget\t\n")
	for _, t := range r.Targets {
		fmt.Fprintf(out, "%s\t%s\t%.2f\t%s\t%s\n", t.Workload, t.Name, t.Got, t.limit(), t.verdict())
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("report as a table: %w", err)
	}
	return nil
}

// cells are a run's values in the order of columns.
func cells(run Run) []string {
	if !run.Measured() {
		row := make([]string, strings.Count(columns, "\t")+1)
		row[0], row[len(row)-1] = run.Contender, "skipped: "+run.Skipped
		if run.Problem != "" {
			row[len(row)-1] = "broke off: " + oneLine(run.Problem)
		}
		return row
	}
	// A figure that a run cannot have (an ideal of unshaped links, the time of pulls that all failed) shows as a dash.
	known := func(f float64, format string) string {
		if f == 0 {
			return "-"
		}
		return fmt.Sprintf(format, f)
	}
	return []string{
		run.Contender,
		known(float64(run.First), "%.2f"), known(float64(run.Median), "%.2f"), known(float64(run.Last), "%.2f"),
		known(run.OverIdeal(), "%.2f"),
		fmt.Sprintf("%.2f", run.RegistryCopies()), fmt.Sprint(run.RegistryRequests), fmt.Sprintf("%.2f",
			run.BusiestCopies()),
		known(run.CPUPerGiB(), "%.1f"), known(float64(run.PeakMemory>>20), "%.0f"), known(float64(run.FirstByte),
			"%.3f"),
		fmt.Sprintf("%d of %d", run.Failed, run.Pulls), fmt.Sprintf("%.0f %%", 100*run.Busy), note(run),
	}
}

func note(run Run) string {
	var notes []string
	if run.CPUBound() {
		notes = append(notes, fmt.Sprintf("CPU was the limit (%.0f %% of it not by the run's own processes)",
			100*ratio(run.Others(), run.Busy)))
	}
	if run.ThinLink > 0 {
		notes = append(notes, fmt.Sprintf("%.2f copies into a zone", run.ThinLinkCopies()))
	}
	if run.ReadMedian > 0 {
		notes = append(notes, fmt.Sprintf("median read %.0f ms", 1000*float64(run.ReadMedian)))
	}
	if len(run.Layers) > 0 {
		var waits []string
		for _, l := range run.Layers {
			waits = append(waits, fmt.Sprintf("%.1f", float64(l.FirstByte)))
		}
		notes = append(notes, "first byte of each blob, smallest first, after at most "+strings.Join(waits, ", ")+" s")
	}
	if run.Late != nil {
		notes = append(notes, fmt.Sprintf("%d late nodes took %d bytes from the origin in %d requests", run.Late.Nodes,
			run.Late.Bytes, run.Late.Requests))
	}
	if run.WarmRatio > 0 {
		notes = append(notes, fmt.Sprintf("warm %.2f of http.ServeFile", run.WarmRatio))
	}
	if run.Fallbacks > 0 {
		notes = append(notes, fmt.Sprintf("%d requests were refused and fell back to the registry", run.Fallbacks))
	}
	if run.Resumed > 0 {
		notes = append(notes, fmt.Sprintf("%d bodies broke off", run.Resumed))
	}
	if run.Again > 0 {
		notes = append(notes, fmt.Sprintf("%d blobs were wrong, and read again from their start", run.Again))
	}
	if run.Killed != "" {
		notes = append(notes, run.Killed+" was killed")
	}
	if len(run.Failures) > 0 {
		notes = append(notes, "failed: "+oneLine(run.Failures[0]))
	}
	return strings.Join(notes, "; ")
}

// oneLine is the start of a message, fit for a cell.
func oneLine(message string) string {
	const most = 160
	message = strings.Join(strings.Fields(message), " ")
	if len(message) > most {
		return message[:most] + "…"
	}
	return message
}

func (t Target) limit() string {
	word := "at most"
	if t.AtLeast {
		word = "at least"
	}
	return fmt.Sprintf("%s %.2f", word, t.Limit)
}

func (t Target) verdict() string {
	verdict := "missed"
	if t.Met() {
		verdict = "met"
	}
	if t.CPUBound {
		verdict += " (CPU was the limit)"
	}
	return verdict
}
