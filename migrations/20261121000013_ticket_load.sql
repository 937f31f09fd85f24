-- How many tickets each assignee works on became a counter when automatic assignment came. For logs that are older, what the events say: tickets that are neither resolved nor
-- gone, by assignee; those who have none any more have a counter at zero, as the fold has.
insert into counters (tenant_id, name, value)
select a.tenant_id, 'agent_load:' || a.assignee, count(*) filter (where t.assignee = a.assignee and t.working)
from (select distinct tenant_id, payload ->> 'to' as assignee from events where event_type = 'ticket.assigned') a
left join (
  select e.tenant_id, e.aggregate_id,
    (select case when l.event_type = 'ticket.assigned' then l.payload ->> 'to' end from events l
     where l.aggregate_type = 'ticket' and l.aggregate_id = e.aggregate_id and l.event_type in ('ticket.assigned', 'ticket.unassigned') order by l.sequence desc limit 1) as assignee,
    coalesce((select l.event_type = 'ticket.reopened' from events l
     where l.aggregate_type = 'ticket' and l.aggregate_id = e.aggregate_id and l.event_type in ('ticket.resolved', 'ticket.reopened', 'ticket.closed', 'ticket.deleted') order by l.sequence desc limit 1), true) as working
  from events e where e.event_type = 'ticket.opened'
) t on t.tenant_id = a.tenant_id
join tenant_heads h on h.tenant_id = a.tenant_id and h.gate is distinct from 'deleted'
group by a.tenant_id, a.assignee
on conflict do nothing;
