//go:build ambi_norollback

package plugin

const undoes = false
