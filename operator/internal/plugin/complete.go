package plugin

import (
	"context"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shoal-cache/shoal/api/v1alpha1"
)

// completeWithin bounds what the API server is asked while somebody waits for a word to be completed.
const completeWithin = 2 * time.Second

// completeFlag says what values a flag may have.
func completeFlag(cmd *cobra.Command, name string, complete cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(name, complete); err != nil {
		panic(err) // there is no such flag, or it is said twice
	}
}

// completeFile completes the name of a file, as a shell does by itself.
func completeFile(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveDefault
}

// nodeFlag adds --node, which is completed by the names of nodes with an agent.
func (p *plugin) nodeFlag(cmd *cobra.Command, node *string, usage string) {
	cmd.Flags().StringVar(node, "node", "", usage)
	completeFlag(cmd, "node", func(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion,
		cobra.ShellCompDirective) {
		var peers v1alpha1.PeerList
		return p.names(cmd.Context(), &peers, func() (names []string) {
			for _, peer := range peers.Items {
				names = append(names, peer.Name)
			}
			return names
		})
	})
}

// completePins completes the names of pins of the namespace.
func (p *plugin) completePins(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	namespace, err := p.namespace()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var pins v1alpha1.ArtifactPinList
	return p.names(cmd.Context(), &pins, func() (names []string) {
		for _, pin := range pins.Items {
			names = append(names, pin.Name)
		}
		return names
	}, client.InNamespace(namespace))
}

// names lists objects, and gives what of tells of them.
func (p *plugin) names(ctx context.Context, list client.ObjectList, of func() []string,
	opts ...client.ListOption) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(ctx, completeWithin)
	defer cancel()
	p.patience = completeWithin
	if p.connect() != nil || p.api.List(ctx, list, opts...) != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return of(), cobra.ShellCompDirectiveNoFileComp
}
