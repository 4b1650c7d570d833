//go:build !ambi_norollback

package delegate

// undoes is that a chain whose ADD fails takes back what it did. The build tag
// ambi_norollback switches it off, so that e2e/fault can show that it would notice.
const undoes = true
