"""The tutorial on a multimodal density finds all of it."""

import numpy as np

from tests.test_tutorials import is_a_picture, load


def test_multimodal_sampling(tmp_path):
    module, path = load("multimodal_sampling"), tmp_path / "picture.png"
    results = module.main(["--quick", "--out", str(path)])
    assert set(results) == {"untrained", "KL", "log-variance"}
    for name, result in results.items():
        weights = result["weights"]
        assert abs(weights.log_evidence - module.LOG_Z) < 4 * weights.standard_error, name
        assert weights.elbo < module.LOG_Z
        if name != "untrained":
            assert weights.elbo > results["untrained"]["weights"].elbo + 0.5
        # Resampled by weight, every mode has its share.
        nearest = np.argmin(((np.asarray(weights.trace["end"])[:, None] - np.asarray(module.CENTRES)) ** 2).sum(-1), axis=1)
        w = np.exp(np.asarray(weights.log_weights - weights.log_weights.max(), float))
        found = np.bincount(nearest, weights=w / w.sum(), minlength=9)
        np.testing.assert_allclose(found, module.SHARES, atol=5 * (0.25 / (weights.ess * len(w))) ** 0.5)
    assert is_a_picture(path)
