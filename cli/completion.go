package cli

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

var shells = []string{"bash", "zsh", "fish"}

func completionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "print the completion script of a shell",
		Long: `Print the completion script of a shell. Commands, flags, container IDs and
published ports are completed.`,
		Example: `  ambi completion bash >/etc/bash_completion.d/ambi
  ambi completion zsh >"${fpath[1]}/_ambi"
  ambi completion fish >~/.config/fish/completions/ambi.fish
  source <(ambi completion bash)`,
		ValidArgs: shells,
		Args: func(c *cobra.Command, args []string) error {
			if err := arguments(1, 1, "the name of a shell")(c, args); err != nil {
				return err
			}
			if !slices.Contains(shells, args[0]) {
				return usageError(c, "no completion for the shell %q, only for %s", args[0], strings.Join(shells, ", "))
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			out := programs(c.OutOrStdout())
			switch args[0] {
			case "bash":
				return c.Root().GenBashCompletionV2(out, true)
			case "zsh":
				return c.Root().GenZshCompletion(out)
			}
			return c.Root().GenFishCompletion(out, true)
		},
	}
}

// completeContainers completes container IDs, each with its network.
func (a *app) completeContainers(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	all, err := a.attachments(nil)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var ids []string
	for _, t := range all {
		if !slices.Contains(args, t.ContainerID) {
			ids = append(ids, t.ContainerID+"\t"+t.Network+" "+t.IfName)
		}
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}

// completeOneContainer is for commands that take a single one.
func (a *app) completeOneContainer(c *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.completeContainers(c, args, toComplete)
}
