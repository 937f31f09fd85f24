-- Words of texts are found whatever stands around them: "INV-2041" by 2041, a host or a path of a URL by its parts, a text in NFD by a query in NFC, and words inside of sentences
-- of scripts that are written without spaces by pairs of their characters (bigrams). See ADR 0031.

-- A text as it is searched: in NFKC, everything that is neither a letter nor a digit as a space. Of a text that becomes very long by that the beginning counts: a tsvector holds
-- at most 1 MB.
create function read.plain(said text) returns text language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
  select regexp_replace(left(normalize(coalesce(said, ''), nfkc), 60000),
    '[\u0001-\u002F\u003A-\u0040\u005B-\u0060\u007B-\u00A9\u00AB-\u00B4\u00B6-\u00B9\u00BB-\u00BF\u00D7\u00F7\u034F\u061C\u1680\u180E\u2000-\u203E\u2041-\u2053\u2055-\u206F\u2190-\u2BFF\u2E00-\u2E7F\u3000-\u3004\u3008-\u3020\u3030\u30FB\uFE00-\uFE6F\uFEFF\uFFF0-\uFFFF]+', ' ', 'g')
$$;

-- The characters and the pairs of characters of a plain text in scripts that are written without spaces: Thai, Lao, Burmese, Khmer, kana, Han, Hangul.
create function read.grams(plain text, single boolean) returns text[] language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
  select coalesce(array_agg(distinct gram), '{}') from (
    select case n when 1 then c when 2 then c || next end as gram from (
      select c, lead(c) over (partition by run order by at) as next, count(*) over (partition by run) as length
      from regexp_matches(plain, '[\u0E00-\u0EFF\u1000-\u109F\u1780-\u17FF\u3005-\u3007\u3021-\u302F\u3031-\u30FA\u30FC-\u9FFF\uA960-\uA97F\uAC00-\uD7FF\uF900-\uFAFF\U00020000-\U0003FFFF]+', 'g') with ordinality as runs (found, run),
        unnest(string_to_array(found[1], null)) with ordinality as characters (c, at)
    ) characters, (values (1), (2)) as sizes (n)
    where n = 2 or single or length = 1
  ) grams where gram is not null
$$;

-- The rest of a plain text.
create function read.spaced(plain text) returns text language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
  select regexp_replace(plain, '[\u0E00-\u0EFF\u1000-\u109F\u1780-\u17FF\u3005-\u3007\u3021-\u302F\u3031-\u30FA\u30FC-\u9FFF\uA960-\uA97F\uAC00-\uD7FF\uF900-\uFAFF\U00020000-\U0003FFFF]+', ' ', 'g')
$$;

-- Its cost is that of a long text, so that the indexes over it are used, also for words that most texts have.
create or replace function read.words(tenant uuid, said text) returns tsvector language sql immutable parallel safe cost 20000 set search_path = pg_catalog, pg_temp as $$
  select array_to_tsvector(array_append(read.grams(plain, true), tenant::text)) || to_tsvector('simple', read.spaced(plain))
  from (select read.plain(said) as plain) text
$$;

-- What a search asks for: all its words; "phrases" word by word; -exclusions; alternatives joined by or. A word with something inside of it, such as inv-2041, is a phrase.
create function read.wanted(said text) returns tsquery language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp set client_min_messages = warning as $$
declare
  term text[];
  plain text;
  gram text;
  part tsquery;
  every tsquery := ''::tsquery;
  wanted tsquery := ''::tsquery;
begin
  for term in select regexp_matches(said, '(-?)"([^"]*)"?|(-?)([^\s"]+)', 'g') loop
    if lower(term[4]) = 'or' and term[3] = '' then
      wanted := wanted || every;
      every := ''::tsquery;
    else
      plain := read.plain(coalesce(term[2], term[4]));
      part := phraseto_tsquery('simple', read.spaced(plain));
      foreach gram in array read.grams(plain, false) loop
        part := part && quote_literal(gram)::tsquery;
      end loop;
      if numnode(part) > 0 and coalesce(term[1], term[3]) = '-' then
        part := !!part;
      end if;
      every := every && part;
    end if;
  end loop;
  return wanted || every;
end $$;

create or replace function read.tickets_saying(said text, internal boolean) returns setof uuid language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  tenant uuid := nullif(current_setting('app.current_tenant_id', true), '')::uuid;
  wanted tsquery := read.wanted(said);
begin
  if tenant is null or numnode(wanted) = 0 then
    return;
  end if;
  wanted := quote_literal(tenant::text)::tsquery && wanted;
  return query
    select t.id from read.tickets_v1 t where read.words(t.tenant_id, t.subject) @@ wanted and t.tenant_id = tenant
    union
    select e.ticket_id from read.ticket_thread_v1 e where read.words(e.tenant_id, e.body) @@ wanted and e.tenant_id = tenant and (internal or e.visibility = 'public');
end $$;

-- The indexes hold what the function answered before; those of all generations are made anew. No row changes, so nothing has to be rebuilt.
do $$
declare
  stale regclass;
begin
  for stale in
    select i.indexrelid::regclass from pg_index i join pg_class t on t.oid = i.indrelid join pg_namespace n on n.oid = t.relnamespace
    where n.nspname = 'read' and pg_get_indexdef(i.indexrelid) like '%words(%'
  loop
    execute format('reindex index %s', stale);
  end loop;
end $$;
