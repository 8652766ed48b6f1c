package pin

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/operator/internal/plan"
)

func TestStatus_TablesShowSizesInTheUnitOfAllOthers(t *testing.T) {
	t.Parallel()
	status := describe(&v1alpha1.ArtifactPin{}, &plan.Summary{BytesHeld: 16778342, BytesWanted: 3 << 30}, time.Now())
	require.Equal(t, "0.02GiB", status.Held)
	require.Equal(t, "3.00GiB", status.Wanted)
	require.Equal(t, status, own(status), "what it writes is its own")
}
