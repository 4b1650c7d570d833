package supervisor

import (
	"fmt"
	"os"

	"github.com/ambi-cni/ambi/rootless/driver"
)

// tenant is whom a supervisor lives for. The methods of its start stand in the order in
// which they are called.
type tenant interface {
	fmt.Stringer // as people know it

	// prepare is what comes before the driver, and may have that give other addresses.
	prepare(*driver.Command) error
	// meanwhile is what needs no driver. It is done while that starts.
	meanwhile() error
	// configure uses what a driver that is ready has made: the first one, and each that
	// follows it.
	configure() error
	// publish has the first driver publish ports, if that is its part.
	publish() error

	// restored follows configure for each later driver.
	restored() error
	// gone says that there is nobody to live for any more.
	gone() bool
	// deleted says that what the driver made is there no more.
	deleted() bool
	// serve answers a request of the control socket that only the tenant knows. It owns
	// the files.
	serve(request, []*os.File) (reply, error)
	// check says what is not as it should be, and changes nothing.
	check(request) []error
	status(request, *Status)

	// leave takes down what the others put up, and says whether nothing is left of it.
	leave() (clean bool)
	// forget is what DEL does after that, when no DEL is at work.
	forget()
}
