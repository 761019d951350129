-- Rows of track files that DuckDB reads itself, in the types of the index.
-- In:  written (file, track_id, t, y, x, z, id, parent_track_id, parent_id): as they stand in the files, any number;
--          NULL for a column that is not there
--      files (file, fov, y_um, x_um, z_um): micrometres per pixel, 1 where positions are pixels; z_um is NULL where z must
--          be 0
-- Row: one row of the files.
-- Out: fov, t, y, x (pixels), z (NULL where not tracked), id, parent_track_id, parent_id (-1 without one)
--      track_id   NULL in a row that holds what no track file may; `etl.source.tracks` says what
WITH typed AS (
    SELECT
        fov,
        TRY_CAST(track_id AS BIGINT) AS track_id,
        TRY_CAST(t AS BIGINT) AS t,
        y::DOUBLE / y_um AS y,
        x::DOUBLE / x_um AS x,
        CASE WHEN NOT isnan(z::DOUBLE) THEN TRY_CAST(z::DOUBLE / coalesce(z_um, 1) AS FLOAT) END AS z,
        CASE WHEN id IS NULL OR isnan(id::DOUBLE) THEN -1 ELSE TRY_CAST(id AS BIGINT) END AS id,
        CASE WHEN parent_track_id IS NULL OR isnan(parent_track_id::DOUBLE) THEN -1
            ELSE TRY_CAST(parent_track_id AS BIGINT) END AS parent_track_id,
        CASE WHEN parent_id IS NULL OR isnan(parent_id::DOUBLE) THEN -1
            ELSE TRY_CAST(parent_id AS BIGINT) END AS parent_id,
        coalesce(
            TRY_CAST(track_id AS BIGINT) = track_id AND track_id >= 0
            AND TRY_CAST(t AS BIGINT) = t
            AND isfinite(y::DOUBLE) AND isfinite(x::DOUBLE)
            AND (z IS NULL OR isnan(z::DOUBLE) OR z_um IS NOT NULL OR z = 0)
            AND (id IS NULL OR isnan(id::DOUBLE) OR TRY_CAST(id AS BIGINT) = id)
            AND (parent_track_id IS NULL OR isnan(parent_track_id::DOUBLE)
                OR TRY_CAST(parent_track_id AS BIGINT) = parent_track_id)
            AND (parent_id IS NULL OR isnan(parent_id::DOUBLE) OR TRY_CAST(parent_id AS BIGINT) = parent_id)
            -- a float above 2^53 does not tell whole numbers apart
            AND (typeof(track_id) NOT IN ('FLOAT', 'DOUBLE') OR track_id <= 9007199254740992)
            AND (typeof(t) NOT IN ('FLOAT', 'DOUBLE') OR abs(t) <= 9007199254740992)
            AND (typeof(id) NOT IN ('FLOAT', 'DOUBLE') OR id IS NULL OR isnan(id::DOUBLE) OR abs(id) <= 9007199254740992)
            AND (typeof(parent_track_id) NOT IN ('FLOAT', 'DOUBLE') OR parent_track_id IS NULL
                OR isnan(parent_track_id::DOUBLE) OR abs(parent_track_id) <= 9007199254740992)
            AND (typeof(parent_id) NOT IN ('FLOAT', 'DOUBLE') OR parent_id IS NULL
                OR isnan(parent_id::DOUBLE) OR abs(parent_id) <= 9007199254740992),
            false
        ) AS is_sound
    FROM written
    JOIN files USING (file)
)
SELECT
    fov,
    CASE WHEN is_sound THEN track_id END AS track_id,
    t,
    y,
    x,
    z,
    id,
    parent_track_id,
    parent_id
FROM typed
