// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package report

import (
	_ "embed"
	"html/template"
	"io"
)

//go:embed page.html.tmpl
var pageTemplate string

// HTML writes one page that loads nothing else: no network, no script.
func (r *Report) HTML(w io.Writer) error {
	page, err := template.New("page").Parse(pageTemplate)
	if err != nil {
		return err
	}
	type drawn struct {
		Figure
		Drawing template.HTML
	}
	var figures []drawn
	for _, f := range r.Figures() {
		svg, err := f.SVG(true)
		if err != nil {
			return err
		}
		figures = append(figures, drawn{f, template.HTML(svg)}) // generated here, from escaped text
	}
	return page.Execute(w, map[string]any{
		"Title": title, "Warnings": r.Warnings(), "Conditions": r.Conditions.Lines(), "Notes": r.Notes,
		"Routes": r.Routes, "Tables": r.Tables(), "Figures": figures,
	})
}
