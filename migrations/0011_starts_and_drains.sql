-- When the container was started, as the engine tells it: another time means that somebody else started it again, without
-- boot material. Kept here because any control plane may be the one that started it.
alter table instances add column started_at timestamptz;

-- The generation that the swap made the user's. A newer one means that the user was changed since, and that the old
-- instance, which knows nothing of the change, has to go.
alter table instance_moves add column swapped_to bigint;
