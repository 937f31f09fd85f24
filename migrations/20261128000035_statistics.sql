-- Look-ups by key use a cached plan. A plan that was made for an empty table may use any index that begins with the tenant, and read all rows of the tenant. PostgreSQL replans after
-- `analyze`, but autovacuum runs it only once a minute, when a table may already have many rows.
create function read.analyze_grown() returns int language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  grown regclass;
  analyzed int := 0;
begin
  -- One process at a time.
  if not pg_try_advisory_xact_lock(hashtext('read.analyze_grown')) then
    return 0;
  end if;
  for grown in
    select c.oid::regclass from pg_class c
    where c.relnamespace = 'read'::regnamespace and c.relkind = 'r'
      and pg_relation_size(c.oid) / current_setting('block_size')::int > 2 * c.relpages + 4
  loop
    execute format('analyze %s', grown);
    analyzed := analyzed + 1;
  end loop;
  return analyzed;
end $$;
revoke execute on function read.analyze_grown from public;
grant execute on function read.analyze_grown to tenure_projector;
