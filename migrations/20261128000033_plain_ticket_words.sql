-- read.words as before, in a language whose plans are kept, and without looking for scripts that ASCII does not have: it is called for each row that is written, once for each index over it.
-- What it answers is the same, so the indexes hold.
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
