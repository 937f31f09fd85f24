-- Look-ups by key keep their plans. One that was made while its table was empty may read every row of a tenant for one of them, until PostgreSQL knows how large the table has become:
-- autovacuum finds that out after a minute, when many rows may have come. `analyze` makes every plan for the table anew.
create function read.analyze_grown() returns int language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  grown regclass;
  analyzed int := 0;
begin
  -- One process at a time is enough.
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
