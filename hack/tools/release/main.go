// Copyright The Cluster Gateway Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := command(ctx, os.Args[1:], os.Stdout)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return 0
	}
	fmt.Fprintln(os.Stderr, "release:", err)
	return 1
}

// command runs a subcommand.
func command(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		return errors.New("a command is required: build, verify, compare or push")
	}
	switch name, rest := args[0], args[1:]; name {
	case "build":
		return buildCommand(ctx, rest, out)
	case "verify":
		return verifyCommand(rest, out)
	case "compare":
		return compareCommand(rest, out)
	case "push":
		return pushCommand(ctx, rest, out)
	default:
		return fmt.Errorf("unknown command %q: must be build, verify, compare or push", name)
	}
}

func buildCommand(ctx context.Context, args []string, out io.Writer) error {
	o := options{}
	fs := flag.NewFlagSet("release build", flag.ContinueOnError)
	fs.StringVar(&o.source, "source", ".", "`folder` with the source of Cluster Gateway")
	fs.StringVar(&o.dist, "dist", "dist", "`folder` to write the release to; a release in it is replaced")
	fs.StringVar(&o.version, "version", "", "the `version`, such as v0.1.0 (required)")
	fs.StringVar(&o.image, "image", defaultImage, "the `repository` that the image will have, without a tag")
	fs.StringVar(&o.downloadURL, "download-url", "", "`URL` of the folder from which the archives will be downloaded")
	fs.StringVar(&o.platforms, "platforms", defaultPlatforms, "comma-separated `list` of platforms")
	fs.StringVar(&o.signingKey, "signing-key", "", "`file` with a private key in PEM (ECDSA, Ed25519 or RSA) that signs the checksums; none if empty")
	if err := fs.Parse(args); err != nil {
		return err
	}
	r, err := o.complete(ctx, fs.Args())
	if err != nil {
		return err
	}
	r.log = out
	return r.make(ctx)
}

func verifyCommand(args []string, out io.Writer) error {
	fs := flag.NewFlagSet("release verify", flag.ContinueOnError)
	dist := fs.String("dist", "dist", "`folder` with the release")
	key := fs.String("key", "", "`file` with the public key in PEM; if empty, the signature is not checked")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if err := verify(*dist, *key); err != nil {
		return err
	}
	signed := "its signature was not checked"
	if *key != "" {
		signed = "its signature is valid"
	}
	fmt.Fprintf(out, "%s is complete and unchanged; %s\n", *dist, signed)
	return nil
}

func compareCommand(args []string, out io.Writer) error {
	if len(args) != 2 {
		return errors.New("compare needs two folders")
	}
	if err := compare(args[0], args[1]); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s and %s are equal\n", args[0], args[1])
	return nil
}

func pushCommand(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("release push", flag.ContinueOnError)
	dist := fs.String("dist", "dist", "`folder` with the release")
	ref := fs.String("ref", "", "where to push the image, as `REGISTRY/NAME:TAG` (required)")
	if err := fs.Parse(args); err != nil {
		return err
	}
	pushed, err := push(ctx, *dist, *ref)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, pushed)
	return nil
}
