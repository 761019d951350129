-- What the track table of each FOV holds, before anything is left out.
-- In:  placed (fov, t, y, x): all rows of the track files
--      tracks (track, fov, track_id, parent_track_id), links (track, parent)
--      fovs (fov, experiment, fov_name, condition, frames, height, width)
-- Row: one FOV that was asked for, in order of (experiment, fov_name).
-- Out: experiment, fov_name, condition, frames, height, width
--      rows, tracks
--      first_t, last_t, y_min, y_max, x_min, x_max   NULL for an empty table
--      outside_time      rows whose t is no frame of the movie
--      outside_image     rows whose centroid is outside the image
--      inside_swapped    rows that would be inside the image if y and x changed places
--      missing_parents   tracks whose parent has no row
--      zero_parents      those whose parent is 0
--      orphan, missing_parent   track_id and parent_track_id of the first of them; NULL without any
WITH cells AS (
    SELECT
        fov,
        count(*) AS rows,
        min(t) AS first_t,
        max(t) AS last_t,
        min(y) AS y_min,
        max(y) AS y_max,
        min(x) AS x_min,
        max(x) AS x_max,
        count(*) FILTER (WHERE t < 0 OR t >= frames) AS outside_time,
        count(*) FILTER (WHERE y < 0 OR y >= height OR x < 0 OR x >= width) AS outside_image,
        count(*) FILTER (WHERE x >= 0 AND x < height AND y >= 0 AND y < width) AS inside_swapped
    FROM placed
    JOIN fovs USING (fov)
    GROUP BY fov
),
lines AS (
    SELECT
        fov,
        count(*) AS tracks,
        count(*) FILTER (WHERE is_orphan) AS missing_parents,
        count(*) FILTER (WHERE is_orphan AND parent_track_id = 0) AS zero_parents,
        arg_min(track_id, track) FILTER (WHERE is_orphan) AS orphan,
        arg_min(parent_track_id, track) FILTER (WHERE is_orphan) AS missing_parent
    FROM (
        SELECT tracks.*, parent_track_id <> -1 AND parent IS NULL AS is_orphan
        FROM tracks
        JOIN links USING (track)
    )
    GROUP BY fov
)
SELECT
    experiment,
    fov_name,
    condition,
    frames,
    height,
    width,
    coalesce(rows, 0) AS rows,
    coalesce(tracks, 0) AS tracks,
    first_t,
    last_t,
    y_min,
    y_max,
    x_min,
    x_max,
    coalesce(outside_time, 0) AS outside_time,
    coalesce(outside_image, 0) AS outside_image,
    coalesce(inside_swapped, 0) AS inside_swapped,
    coalesce(missing_parents, 0) AS missing_parents,
    coalesce(zero_parents, 0) AS zero_parents,
    orphan,
    missing_parent
FROM fovs
LEFT JOIN cells USING (fov)
LEFT JOIN lines USING (fov)
ORDER BY fov
