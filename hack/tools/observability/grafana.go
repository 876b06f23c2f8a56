// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import "encoding/json"

// dashboard is one dashboard of Grafana.
type dashboard struct {
	file, uid, title, description string
	// perCluster adds the variable $cluster.
	perCluster bool
	rows       []row
}

// row is a titled line of panels. They share the width of the dashboard.
type row struct {
	title  string
	panels []panel
}

// panel shows the results of queries.
type panel struct {
	// kind is timeseries, stat or table.
	kind, title, description string
	// unit is one of Grafana's, such as s, bytes or percentunit.
	unit    string
	queries []query
	// stack stacks the series of a timeseries.
	stack bool
	// red is the value of a stat from which it is red. 0: it has no thresholds.
	red float64
}

// query is an expression in PromQL. It can use $cluster and $__rate_interval.
type query struct{ expr, legend string }

// Grafana divides a dashboard into 24 columns.
const (
	columns   = 24
	rowHeight = 8
)

// object is an object of JSON. It is encoded with sorted keys.
type object = map[string]any

var datasource = object{"type": "prometheus", "uid": "${datasource}"}

// encode returns the JSON that Grafana imports.
func (d *dashboard) encode() ([]byte, error) {
	variables := []object{{"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}}
	if d.perCluster {
		const names = "label_values(cluster_gateway_ready, cluster)"
		variables = append(variables, object{
			"name": "cluster", "label": "Cluster", "type": "query", "datasource": datasource, "definition": names,
			"query": object{"query": names, "refId": "clusters"}, "refresh": 2, "sort": 1,
		})
	}
	var panels []object
	y, id := 0, 0
	for _, r := range d.rows {
		id++
		panels = append(panels, object{
			"id": id, "type": "row", "title": r.title, "collapsed": false, "panels": []object{},
			"gridPos": object{"x": 0, "y": y, "w": columns, "h": 1},
		})
		y++
		width := columns / len(r.panels)
		for i, p := range r.panels {
			id++
			panels = append(panels, p.encode(id, object{"x": i * width, "y": y, "w": width, "h": rowHeight}))
		}
		y += rowHeight
	}
	data, err := json.MarshalIndent(object{
		"uid": d.uid, "title": d.title, "description": d.description, "tags": []string{"cluster-gateway"},
		"schemaVersion": 39, "editable": true, "refresh": "30s", "time": object{"from": "now-6h", "to": "now"},
		"templating": object{"list": variables}, "panels": panels, "annotations": object{"list": []object{}},
		"links": []object{{"type": "dashboards", "title": "Cluster Gateway", "tags": []string{"cluster-gateway"}, "keepTime": true}},
	}, "", "  ")
	return append(data, '\n'), err
}

func (p *panel) encode(id int, position object) object {
	var targets []object
	for i, q := range p.queries {
		target := object{"refId": string(rune('A' + i)), "expr": q.expr, "legendFormat": q.legend, "datasource": datasource}
		if p.kind == "table" {
			target["format"], target["instant"] = "table", true
		}
		targets = append(targets, target)
	}
	defaults := object{"unit": p.unit}
	if p.unit == "" {
		defaults["unit"] = "short"
	}
	options := object{}
	switch p.kind {
	case "timeseries":
		defaults["min"] = 0
		stacking := object{"mode": "none"}
		fill := 0
		if p.stack {
			stacking, fill = object{"mode": "normal", "group": "A"}, 20
		}
		defaults["custom"] = object{"stacking": stacking, "fillOpacity": fill, "showPoints": "never"}
		options = object{"legend": object{"displayMode": "list", "placement": "bottom"}, "tooltip": object{"mode": "multi", "sort": "desc"}}
	case "stat":
		options = object{"reduceOptions": object{"calcs": []string{"lastNotNull"}}, "colorMode": "value", "graphMode": "area"}
		steps := []object{{"color": "green", "value": nil}}
		if p.red != 0 {
			steps = append(steps, object{"color": "red", "value": p.red})
		}
		defaults["thresholds"] = object{"mode": "absolute", "steps": steps}
	}
	return object{
		"id": id, "type": p.kind, "title": p.title, "description": p.description, "datasource": datasource, "gridPos": position,
		"targets": targets, "options": options, "fieldConfig": object{"defaults": defaults, "overrides": []object{}},
	}
}
