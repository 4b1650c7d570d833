//go:build ambi_norollback

package delegate

const undoes = false
