-- How many tickets each assignee works on became a counter when automatic assignment came. For logs that are older, what the events say: tickets that are neither resolved nor
-- gone, by assignee; those who have none any more have a counter at zero, as the fold has.
with tickets as (
  select distinct on (e.aggregate_id) e.tenant_id, e.aggregate_id,
    case when e.event_type = 'ticket.assigned' then e.payload ->> 'to' end as assignee
  from events e where e.event_type in ('ticket.assigned', 'ticket.unassigned') order by e.aggregate_id, e.sequence desc
), stands as (
  select distinct on (e.aggregate_id) e.aggregate_id, e.event_type = 'ticket.reopened' as working
  from events e where e.event_type in ('ticket.resolved', 'ticket.reopened', 'ticket.closed', 'ticket.deleted') order by e.aggregate_id, e.sequence desc
), loads as (
  select t.tenant_id, t.assignee, count(*) as load from tickets t left join stands s using (aggregate_id)
  where t.assignee is not null and coalesce(s.working, true) group by 1, 2
)
insert into counters (tenant_id, name, value)
select a.tenant_id, 'agent_load:' || a.assignee, coalesce(l.load, 0)
from (select distinct tenant_id, payload ->> 'to' as assignee from events where event_type = 'ticket.assigned') a
left join loads l using (tenant_id, assignee)
join tenant_heads h on h.tenant_id = a.tenant_id and h.gate is distinct from 'deleted'
on conflict do nothing;
