package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"strings"
)

//go:embed report.html.tmpl
var page string

var pageTemplate = template.Must(template.New("report").Funcs(template.FuncMap{
	"plot":    plot,
	"class":   class,
	"classes": func() []template.CSS { return classes },
	"cells":   cells,
	"columns": func() []string { return strings.Split(columns, "\t") },
	"limit":   Target.limit,
	"verdict": Target.verdict,
	"figure":  func(f float64) string { return fmt.Sprintf("%.2f", f) },
}).Parse(page))

// classes are the coloured contenders as the style sheet names them.
var classes = func() []template.CSS {
	names := make([]template.CSS, len(coloured))
	for i, name := range coloured {
		names[i] = template.CSS(name) //nolint:gosec // a constant
	}
	return names
}()

// WriteHTML writes the report as one page that needs nothing else.
func (r *Report) WriteHTML(w io.Writer) error {
	if err := pageTemplate.Execute(w, r); err != nil {
		return fmt.Errorf("report as a page: %w", err)
	}
	return nil
}
