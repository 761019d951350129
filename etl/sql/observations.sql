-- The observations of the index.
-- In:  placed (row, fov, track_id, t, z, y, x, id, parent_id, y_clamp, x_clamp, reason),
--      kept_tracks (fov, track_id, parent_track_id, track_index, lineage_index),
--      kept_fovs (fov, fov_index, experiment_index, start_hpi, interval_minutes),
--      annotated (row, annotation)
-- Row: one kept observation, in order of (experiment, fov_name, track_id, t).
-- Out: identity, centroid and centre of the patch; hpi: hours post infection; numbers of what it belongs to;
--      row of the track files, annotation that it has (NULL without one)
SELECT
    kept_tracks.track_id,
    kept_tracks.parent_track_id,
    t::INTEGER AS t,
    z::FLOAT AS z,
    y::FLOAT AS y,
    x::FLOAT AS x,
    id,
    parent_id,
    y_clamp,
    x_clamp,
    (start_hpi + t * interval_minutes / 60)::FLOAT AS hpi,
    experiment_index::SMALLINT AS experiment_index,
    fov_index,
    track_index,
    lineage_index,
    placed.row,
    annotation
FROM placed
JOIN kept_tracks ON kept_tracks.fov = placed.fov AND kept_tracks.track_id = placed.track_id
JOIN kept_fovs ON kept_fovs.fov = placed.fov
LEFT JOIN annotated ON annotated.row = placed.row
WHERE reason IS NULL
ORDER BY track_index, t
