package root

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
)

func TestPrevResultThatIsNoObject(t *testing.T) {
	for _, text := range []string{"[]", "null", `"x"`, "7"} {
		_, err := PrevResult(&conf.NetConf{PrevResult: json.RawMessage(text), CNIVersion: "1.1.0"})
		require.ErrorContains(t, err, `key "prevResult": the result of ADD is a JSON object, and not `+text)
	}
}
