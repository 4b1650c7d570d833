//go:build !ambi_norollback

package plugin

// undoes is that a failed ADD takes back what it did. The build tag ambi_norollback
// switches it off, so that e2e/fault can show that it would notice.
const undoes = true
