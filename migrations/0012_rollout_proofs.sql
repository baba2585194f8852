-- `asleep`: takes the rollout's image with its next start, and the image before should that start fail.

alter table rollout_members drop constraint rollout_members_state_check;
alter table rollout_members add constraint rollout_members_state_check
  check (state in ('waiting', 'moving', 'asleep', 'moved', 'failed', 'reverting', 'reverted'));
-- it had failed with the image before, too: no fault of the new one
alter table rollout_members add column failing_before boolean not null default false;
create index rollout_members_asleep on rollout_members (user_id) where state = 'asleep';
