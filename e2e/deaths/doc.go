// Package deaths kills the processes that ambi leaves running, at random, while clients
// connect, transfer and resolve, and says what they saw of it: peer deaths for the scripts, and
// the rows "back within" of the bench.
package deaths
