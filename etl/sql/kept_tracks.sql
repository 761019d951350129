-- The tracks of the index, numbered without gaps.
-- In:  tracks (track, fov, track_id, parent_track_id), descent (track, root, ancestor, kept)
-- Row: one track with kept observations, in order of (fov, track_id).
-- Out: track_index, fov, track_id, parent_track_id (as written)
--      lineage_index        numbers the lineages in order of their roots
--      parent_track_index   nearest ancestor with kept observations; -1 without any
--      root_track_id        track_id of the root, whose own observations may all be dropped
WITH kept AS (
    SELECT
        track,
        root,
        ancestor,
        (row_number() OVER (ORDER BY track) - 1)::INTEGER AS track_index,
        (dense_rank() OVER (ORDER BY root) - 1)::INTEGER AS lineage_index
    FROM descent
    WHERE kept
)
SELECT
    kept.track_index,
    tracks.fov,
    tracks.track_id,
    tracks.parent_track_id,
    kept.lineage_index,
    coalesce(parent.track_index, -1)::INTEGER AS parent_track_index,
    root.track_id AS root_track_id
FROM kept
JOIN tracks ON tracks.track = kept.track
JOIN tracks AS root ON root.track = kept.root
LEFT JOIN kept AS parent ON parent.track = kept.ancestor
ORDER BY kept.track_index
