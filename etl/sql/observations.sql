-- The rows of the track files, as the index has them; they get their order in `etl.ordering`.
-- In:  placed (fov, track_id, t, z, y, x, id, parent_id, parent_track_id, y_clamp, x_clamp, reason, codes of labels)
-- Row: one row of the track files.
-- Out: fov, track_id, t, z, y, x, id, parent_id, y_clamp, x_clamp, codes of labels
--      kept   whether it is an observation of the index
SELECT
    placed.* EXCLUDE (parent_track_id, reason) REPLACE (
        TRY_CAST(z AS FLOAT) AS z,
        TRY_CAST(y AS FLOAT) AS y,
        TRY_CAST(x AS FLOAT) AS x
    ),
    reason IS NULL AS kept
FROM placed
