"""enrich over Ray Data, in a Ray of this machine."""

import pyarrow as pa
import pytest

import hfbatch
from hfbatch.spec import Machine
from hfbatch.startup import ray_for
from tests.models import sentences

pytestmark = pytest.mark.slow


def test_a_ray_dataset_gets_its_columns_when_it_is_consumed(classifier):
    import ray.data

    table = pa.table({"n": range(300), "text": [*sentences(298), None, "good"]})
    expected = hfbatch.enrich(table, task="text-classification", model=classifier)
    hfbatch.shutdown()
    with ray_for(Machine()):
        for rows in (ray.data.from_arrow(table), ray.data.from_pandas(table.to_pandas())):
            dataset = hfbatch.enrich(rows, task="text-classification", model=classifier, lineage=True)
            assert isinstance(dataset, ray.data.Dataset)
            found = pa.concat_tables(dataset.iter_batches(batch_size=None, batch_format="pyarrow")).sort_by("n")
            assert found["label"].to_pylist() == expected["label"].to_pylist()
            assert found["error"].to_pylist() == expected["error"].to_pylist()
            assert len(set(found["run_id"].to_pylist())) == 1
        with pytest.raises(hfbatch.SpecError, match="the frame has no column 'txt'"):
            hfbatch.enrich(rows, task="text-classification", model=classifier, column="txt")
