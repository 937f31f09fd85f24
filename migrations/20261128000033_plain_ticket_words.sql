-- The same result as before, so the indexes stay valid. Faster, because it is called for every row that is written: PL/pgSQL caches its plans, and ASCII texts skip the search for other scripts.
create or replace function read.words(tenant uuid, said text) returns tsvector language plpgsql immutable parallel safe cost 20000 set search_path = pg_catalog, pg_temp as $$
declare
  plain text;
begin
  if octet_length(said) = char_length(said) then
    plain := regexp_replace(left(said, 60000), '[\u0001-\u002F\u003A-\u0040\u005B-\u0060\u007B-\u007F]+', ' ', 'g');
    return array_to_tsvector(array[tenant::text]) || to_tsvector('simple', plain);
  end if;
  plain := read.plain(said);
  return array_to_tsvector(array_append(read.grams(plain, true), tenant::text)) || to_tsvector('simple', read.spaced(plain));
end $$;
