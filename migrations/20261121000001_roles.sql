-- The roles that services act in. None of them owns anything, so none can alter, drop or disable what guards the log. Roles belong to the whole cluster, so several
-- databases may be migrated at once: losing that race is fine.
do $$
declare
  wanted text;
begin
  foreach wanted in array array['tenure_writer', 'tenure_projector', 'tenure_reader', 'tenure_platform_reader'] loop
    if not exists (select from pg_roles where rolname = wanted) then
      begin
        execute format('create role %I nologin', wanted);
      exception when duplicate_object or unique_violation then null;
      end;
    end if;
    -- Services log in as members of these roles and act in exactly one of them per connection. The one who migrates may do so too, which is enough for a small site.
    if not pg_has_role(current_user, wanted, 'member') then
      begin
        execute format('grant %I to current_user', wanted);
      exception when unique_violation then null;
      end;
    end if;
  end loop;
end $$;

create schema ops;
comment on schema ops is 'Operational tables: not folds of the log, outside verify and log export.';
create schema read;
comment on schema read is 'Read models: folds of the log, one table per generation, a view per model.';
grant usage on schema ops to tenure_writer, tenure_projector;
grant usage on schema read to tenure_projector, tenure_reader, tenure_platform_reader;
