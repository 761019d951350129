"""Embeddings to two dimensions, for pictures: PCA, and UMAP where that library is there."""

from __future__ import annotations

import warnings

import numpy as np
from jaxtyping import Float32
from sklearn.decomposition import PCA

from dynaclr_wds.evaluate.smoothness import standardise
from dynaclr_wds.optional import import_optional

_UMAP_COMPONENTS = 50


def project_pca(x: Float32[np.ndarray, "n d"]) -> tuple[Float32[np.ndarray, "n 2"], tuple[float, float]]:
    """Project features on two principal components; returns the share of variance of each, too."""
    count = min(2, *x.shape)
    if not np.ptp(x, axis=0).any():
        return np.zeros((len(x), 2), np.float32), (0.0, 0.0)
    pca = PCA(count, random_state=0)
    made = pca.fit_transform(x.astype(np.float64)).astype(np.float32)
    shares = [*pca.explained_variance_ratio_.tolist(), 0.0][:2]
    return np.pad(made, ((0, 0), (0, 2 - count))), (shares[0], shares[1])


def project_umap(x: Float32[np.ndarray, "n d"], seed: int = 0) -> Float32[np.ndarray, "n 2"]:
    """Project by UMAP (McInnes et al., 2018) from the first 50 principal components, by cosine.

    Raises
    ------
    ConfigError
        umap-learn is not installed.
    """
    umap = import_optional("umap", "--umap")
    standard = standardise(x)
    count = min(_UMAP_COMPONENTS, *standard.shape)
    reduced = PCA(count, random_state=0).fit_transform(standard)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numba, and that a seed leaves one thread
        made = umap.UMAP(
            n_components=2, n_neighbors=min(15, len(x) - 1), metric="cosine", random_state=seed
        ).fit_transform(reduced)
    return np.asarray(made, np.float32)
