// Package plan is a container's interface as it shall be, as data: what a driver works
// out, the supervisor carries out and keeps over restarts of the driver, and CHECK
// compares with. Its arithmetic knows no number of any driver.
//
// It imports nothing of ours. Start at Interface.
package plan
