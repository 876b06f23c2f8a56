// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sync/errgroup"
)

func (o *doctorOptions) validateAll() error {
	_, err := o.labels()
	errs := []error{err}
	if o.cluster.kubeconfig != "" || o.outDir != "" {
		errs = append(errs, errors.New("--cluster-kubeconfig and --out-dir require the name of one cluster"))
	}
	if o.parallel < 1 {
		errs = append(errs, fmt.Errorf("invalid --parallel %d: must be at least 1", o.parallel))
	}
	if o.timeout <= 0 {
		errs = append(errs, fmt.Errorf("invalid --timeout %s: must be positive", o.timeout))
	}
	return errors.Join(errs...)
}

// doctorAll checks several clusters.
func (a *app) doctorAll(ctx context.Context, o *doctorOptions) error {
	names, err := a.clustersToCheck(ctx, o)
	if err != nil {
		return trouble(err)
	}
	diagnoses := a.examineAll(ctx, names, o)
	if ctx.Err() != nil {
		return &ExitError{exitInterrupted, errors.New("interrupted")}
	}
	if a.output == "" {
		err = a.printSummary(diagnoses)
	} else {
		err = a.print(diagnoses)
	}
	if err != nil {
		return err
	}
	var broken []string
	for _, d := range diagnoses {
		if d.Broken != "" {
			broken = append(broken, d.Cluster)
		}
	}
	if len(broken) > 0 {
		return &ExitError{exitFailed, fmt.Errorf("%d of %d clusters are broken: %s", len(broken), len(diagnoses), strings.Join(broken, ", "))}
	}
	a.say("All of %d clusters are ok.", len(diagnoses))
	return nil
}

func (a *app) clustersToCheck(ctx context.Context, o *doctorOptions) ([]string, error) {
	if err := errors.Join(o.validateAll(), a.checkOutput()); err != nil {
		return nil, err
	}
	hub, err := a.connectHub(ctx)
	if err != nil {
		return nil, err
	}
	if err := a.requireGateway(ctx, hub); err != nil {
		return nil, err
	}
	return a.selected(ctx, hub, &o.selection)
}

// examineAll returns the diagnoses in the order of the names.
func (a *app) examineAll(ctx context.Context, names []string, o *doctorOptions) []Diagnosis {
	progress := newConsole(io.Discard, a.ErrOut)
	diagnoses := make([]Diagnosis, len(names))
	done := make(chan struct{}, len(names))
	var group errgroup.Group
	group.SetLimit(o.parallel)
	go func() {
		for i, name := range names {
			group.Go(func() error {
				diagnoses[i] = a.examineOne(ctx, name, o)
				done <- struct{}{}
				return nil
			})
		}
	}()
	for i := range names {
		progress.setProgress(fmt.Sprintf("%d of %d clusters", i, len(names)))
		<-done
	}
	_ = group.Wait() // no errors
	progress.setProgress("")
	return diagnoses
}

func (a *app) examineOne(ctx context.Context, name string, o *doctorOptions) Diagnosis {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	e := &examination{app: a, o: o, name: name}
	e.run(ctx)
	d := newDiagnosis(name, e.route(), e.findings)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		// What failed then failed because the time was up.
		e.broken(StageDial, fmt.Sprintf("no answer within %s", o.timeout), "to see more: "+defaultProgram+" doctor "+name)
		d = newDiagnosis(name, e.route(), e.findings)
		d.Broken = StageDial
	}
	return d
}

// printSummary prints a line for each cluster.
func (a *app) printSummary(diagnoses []Diagnosis) error {
	table := a.newTable()
	fmt.Fprintln(table, "NAME\tSTATE\tSTAGE\tMESSAGE")
	broken := false
	for _, d := range diagnoses {
		state, message := string(OK), "-"
		for _, f := range d.Findings {
			if f.Stage == d.Broken {
				state = "BROKEN"
				message, _, _ = strings.Cut(f.Message, "\n")
				broken = true
			}
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", d.Cluster, state, orDash(string(d.Broken)), message)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if broken {
		a.say("To find out what to do about a cluster: %s doctor NAME", defaultProgram)
	}
	return nil
}
